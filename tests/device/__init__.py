"""A device with memory of its own, on a machine without a GPU: llama.cpp's RPC back end and a server on loopback.

To llama.cpp such a device is a GPU: layers, KV cache and buffers lie in another process, and none of them has an
address here.
"""
