.PHONY: env which-python
env:
	@python3 tools/make_env.py
which-python:
	@python3 tools/make_env.py --print-interpreter
