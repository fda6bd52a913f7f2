"""Economics: what a model needs, how fast it is, what it costs and emits; arithmetic without torch.

Memory: shape, memory, fit, flops. Speed: roofline, form, published_speed, speed, calibration, and
how far they are off: ladder, prediction_errors, requirements. Load: latency, server, batching,
capacity, under_load. Money and carbon: prices, cost, carbon. The choice: advise.
"""
