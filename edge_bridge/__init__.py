"""Latencies from a real edge device, over ZeroMQ: relay, device agent and client.

Installs alone on the device: standard library, click, msgspec, numpy, pyzmq (and onnxruntime where models are
measured). Must not know `mpinas`, torch or MPI.
"""
