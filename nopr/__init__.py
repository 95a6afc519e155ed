"""The science of neural-network pruning in JAX.

What does a mask know about the data it was chosen on, and are the weights it leaves a good
place to start training?
"""
