"""Several workers share one training, and get the same bytes as one process.

No stage depends on this folder, because no result does. `stages.train` imports it only if TF_CONFIG
names the workers.
"""
