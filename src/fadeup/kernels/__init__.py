"""The fused primitives, one file per implementation. Private: call them through `fadeup.functional`."""
