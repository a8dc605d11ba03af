"""What a trained model did, as numbers and pictures: reconstructions, run logs, figures, the page.

Numbers and plots are apart: `reconstruction`, `confusion` and `run_log` compute, `figures` and `page` only draw what
they are given. Nothing here trains or is imported by a model; the scripts in tools/ call it. Guarded by
tests/analysis/.
"""
