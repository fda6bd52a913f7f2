"""Economics: prices, cost, memory, fit, latency and carbon; arithmetic without torch."""
