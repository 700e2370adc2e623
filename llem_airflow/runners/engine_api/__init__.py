"""The API of vLLM and TensorRT-LLM that our calls were written against, and what compares an image with it."""
