"""The model: loaded, quantized, fed a batch, sampled. The only room where torch works."""
