
Bxj
location../onnx/secret.binj
length16p