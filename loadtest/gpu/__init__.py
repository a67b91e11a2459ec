"""What a GPU does with the networks, by runtime, precision and batch size.

    python3 -m loadtest.gpu [--models M …] [--runtimes R …] [--precisions P …] [--help]

It runs from a checkout with Keras and a runtime (TensorFlow, JAX or PyTorch), without
an installation of this project. Each runtime, network and precision is measured in a
process of its own: Keras takes one runtime a process, and a GPU's memory is free again
only when a process has ended. `docs/gpu.md` tells how to read what comes out.
"""
