"""The box: image, GPUs, bundle, exchange and failures of one attempt in one container."""
