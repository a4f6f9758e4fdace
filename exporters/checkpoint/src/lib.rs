//! Reads PyTorch and safetensors checkpoints as data and resolves them to component specs.
