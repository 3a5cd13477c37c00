//! Trains DINO vision backbones, evaluates them and exports them to ONNX.
