"""A simulated CANN: shared libraries with the vendor's names, which run a graph on the CPU and behave as documented.

It rehearses a deployment without an NPU: the plumbing, the vendor's own wheels, the documented refusals and roundings. It does not show
what the chip computes: kernel internals, fusion and the order of reductions are not modelled.
"""
