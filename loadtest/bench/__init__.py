"""`blockserve bench`: a load test with its report, its verdict and its comparison.

Locust sends the load, in processes of its own that `recorder` listens in. `samples`
gathers what they wrote, as counts of what was `sent`, `scraper` what the gateway told
meanwhile, and `measuring` makes a repetition of both. `slo` judges, `comparison` tells
what changed, and `report` shows it.
"""
