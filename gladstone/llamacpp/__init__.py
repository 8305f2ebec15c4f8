"""llama.cpp through llama-cpp-python: models, contexts, adapters and the devices they compute on."""
