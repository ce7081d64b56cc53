# Set-up on a fresh machine: needs python3 (3.10 to 3.13) with pip and venv, and a network or a local package index.
#
#   make demo     ports a real language model and asks it a question (own venv, no torch; about 2 minutes the first time)
#   make test     every check and every test (own venv, with torch)
#   make clean    removes what both made
#
# make test ARGS="tests/converters -k rope"   runs only these tests, and no other check
# make demo QUESTION="Who wrote Hamlet?"

PYTHON ?= python3
QUESTION ?= What is the capital of France?
ARGS ?=
# tests that run at once
JOBS ?= 2

DEMO := .venv-demo
TEST := .venv-test
# the vendor's wheels: onnxruntime-cann owns onnxruntime's folder, and wants numpy 1
CANN := .venv-cann
# torch-npu: where it is installed, torch and transformers import it, which fails without CANN
NPU := .venv-npu
MODEL := .cache/SmolLM2-135M-Instruct.Q4_1.gguf
PACKAGING := setup.py pyproject.toml constraints.txt constraints-cann.txt
# -qq: pip says nothing but errors
INSTALL := -m pip --disable-pip-version-check install -qq
PIP := $(INSTALL) -c constraints.txt
ELSEWHERE := not device and not cann_wheel and not npu_wheel

.PHONY: demo test test-cann test-npu check clean help

help:
	@sed -n 's/^#   //p' Makefile

demo: $(DEMO)/installed $(MODEL)
	@echo "== porting $(MODEL) to the CPU in int8, and comparing it with what transformers computed in fp32"
	@$(DEMO)/bin/porting port $(MODEL) -o demo-port -p int8 --against examples/smollm2/golden.json --force
	@echo
	@echo "== $(QUESTION)"
	@$(DEMO)/bin/porting generate demo-port "$(QUESTION)"

ifeq ($(strip $(ARGS)),)
test: check
	@$(MAKE) --no-print-directory -j $(JOBS) --output-sync=target test-cann test-npu
	@echo "== tests; those marked 'device' need an accelerator and are not run: $(TEST)/bin/python -m pytest -m device"
	@$(TEST)/bin/python -m pytest -m "$(ELSEWHERE)" -n $(JOBS) --dist worksteal --durations=20 --durations-min=10
else
test: $(TEST)/installed
	@$(TEST)/bin/python -m pytest $(ARGS)
endif

# side by side, each in one process: their ports are made once in it
test-cann: $(CANN)/installed $(TEST)/installed
	@echo "== onnxruntime-cann itself, over the simulated CANN"
	@PORTING_PORTS_WITH=$(CURDIR)/$(TEST)/bin/python $(CANN)/bin/python -m pytest -m cann_wheel tests/ascend_wheels

test-npu: $(NPU)/installed
	@echo "== torch-npu itself, over the simulated CANN"
	@$(NPU)/bin/python -m pytest -m npu_wheel tests/ascend_wheels

check: $(TEST)/installed
	@echo "== ruff"
	@$(TEST)/bin/ruff check .
	@$(TEST)/bin/ruff format --check .
	@echo "== mypy"
	@$(TEST)/bin/python tests/typecheck.py

$(DEMO)/installed: $(PACKAGING)
	@echo "== installing porting into $(DEMO), without torch"
	@test -x $(DEMO)/bin/python || $(PYTHON) -m venv $(DEMO)
	@$(DEMO)/bin/python $(PIP) -e ".[cpu,gguf]"
	@touch $@

$(TEST)/installed: $(PACKAGING)
	@echo "== installing porting and all that the tests need into $(TEST)"
	@test -x $(TEST)/bin/python || $(PYTHON) -m venv $(TEST)
	@$(TEST)/bin/python $(PIP) -e ".[test]"
	@touch $@

$(CANN)/installed: $(PACKAGING)
	@echo "== installing porting and onnxruntime-cann into $(CANN)"
	@test -x $(CANN)/bin/python || $(PYTHON) -m venv $(CANN)
	@$(CANN)/bin/python $(INSTALL) -c constraints-cann.txt -e ".[ascend,gguf]" pytest hypothesis pyyaml packaging
	@touch $@

$(NPU)/installed: $(PACKAGING)
	@echo "== installing porting and torch-npu into $(NPU)"
	@test -x $(NPU)/bin/python || $(PYTHON) -m venv $(NPU)
	@$(NPU)/bin/python $(PIP) -e ".[npu,cpu,gguf]" pytest hypothesis packaging
	@touch $@

$(MODEL):
	@echo "== getting SmolLM2-135M-Instruct, 98 MB"
	@$(PYTHON) examples/get_smollm2.py --into .cache > /dev/null

clean:
	rm -rf $(DEMO) $(TEST) $(CANN) $(NPU) .cache demo-port build porting.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
