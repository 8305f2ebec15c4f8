# Read by CMake where llama.cpp's own project begins (CMAKE_PROJECT_llama.cpp_INCLUDE). llama-cpp-python asks for
# llama.cpp's "common" library, which its command-line tools use and no Python code loads: a third of the build.
set(LLAMA_BUILD_COMMON OFF CACHE BOOL "" FORCE)
