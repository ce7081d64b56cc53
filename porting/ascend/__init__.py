"""Huawei Ascend, as far as no device is needed: what its documents and sources say of a graph, and what is handed over to its compiler."""
