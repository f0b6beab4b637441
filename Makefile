# make demo: a running search over the sample photographs.  make test: the test suite.  make quick: a minute of it.
# All create the environment in .venv the first time and leave it alone after that.

PYTHON ?= python3
VENV := .venv
READY := $(VENV)/.ready
RUN := $(VENV)/bin

.PHONY: demo test quick clean

demo: $(READY)
	@$(RUN)/mmsearch index samples --index .demo
	@for question in "a cat" "a hot air balloon" "a bridge at night"; do \
	  echo; echo "mmsearch query \"$$question\" -k 3"; \
	  $(RUN)/mmsearch query "$$question" -k 3 --index .demo; \
	done

test: $(READY)
	$(RUN)/ruff check .
	$(RUN)/ruff format --check .
	$(RUN)/mypy
	OMP_NUM_THREADS=1 $(RUN)/pytest --numprocesses=2 --dist=loadfile

quick: $(READY)
	OMP_NUM_THREADS=1 $(RUN)/pytest --numprocesses=2 --dist=loadfile -m 'not slow'

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "mmsearch needs Python 3.10 or newer; name one with make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(RUN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[cpu,train,dev]'
	@touch $(READY)

clean:
	rm -rf $(VENV) .demo
