"""Huawei Ascend NPUs. Never run on hardware: tested against a simulated CANN (backends/cann_simulator), to whose interface the code holds.

backend.py      the device `ascend`: which route a program takes
om_files.py     route om: which compiled model belongs to a program
om_session.py   ... runs it: inputs and outputs by name, gears, state that stays on the device
om_model.py     ... a compiled model as AscendCL describes it
om_buffers.py   ... memory on the device and pinned on the host, data sets, the stream
om_images.py    ... models that take pixels, because AIPP makes their numbers
acl.py          AscendCL's C functions, every call checked; acl_codes.py: what its codes mean as errors
"""
