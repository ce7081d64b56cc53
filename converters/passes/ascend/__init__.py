"""Passes that bring a canonical graph to what Ascend's ONNX parser takes and computes as ONNX says; tables.py has their order."""
