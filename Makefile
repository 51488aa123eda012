# make demo | app | test | test-slow | lint | format | pictures | clean.  VENV=DIR uses that
# environment.
PYTHON ?= python3
VENV ?= .venv
RUN := $(VENV)/bin/python
DEMO := demo/11k
DEMO_RUN := demo/run
DEMO_CSV := $(DEMO)/sub_dataset/dorsal_dr.csv
CHROMIUM ?= $(shell command -v chromium || command -v chromium-browser)

.PHONY: demo app test test-slow lint format pictures clean

# Install what is missing; --no-index first, so that a complete environment needs no network.
define install
	@test -x $(RUN) || $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and \
		"Python 3.11 or newer is needed: make PYTHON=/path/to/python3.11")'
	@test -x $(RUN) || $(PYTHON) -m venv $(VENV)
	@PIP_FIND_LINKS= $(RUN) -m pip install -q --no-index -r $< >/dev/null 2>&1 \
		|| $(RUN) -m pip install -r $<
	@touch $@
endef

$(VENV)/installed: requirements.txt
	$(install)

$(VENV)/installed-extra: requirements-extra.txt $(VENV)/installed
	$(install)

$(VENV)/installed-dev: requirements-dev.txt requirements-extra.txt requirements.txt
	$(install)

define enroll
	test -f demo/hands.sqlite || $(RUN) gallery.py enroll demo/hands.sqlite \
		$(DEMO)/trainval/dorsal_dr/train.csv --checkpoint $(DEMO_RUN)/checkpoint-*-best.pth
endef

demo: $(VENV)/installed
	$(RUN) dataset_11k_synthetic.py --output $(DEMO) --identities 30 --images_per_identity 12
	$(RUN) dataset_11k_split.py --input $(DEMO)
	$(RUN) dataset_11k_analyze.py --input $(DEMO) --output demo/analysis
	if test -f $(DEMO_RUN)/config.json; then $(RUN) train.py --resume $(DEMO_RUN); else \
		$(RUN) train.py --attributes_file $(DEMO_CSV) --run_dir $(DEMO_RUN) \
		--backbone resnet10t --no-pretrained --backbone_lr_scale 1 --image_size 96 --N_epochs 60; fi
	$(RUN) test.py --attributes_file $(DEMO_CSV) --checkpoint $(DEMO_RUN)/checkpoint-*-best.pth
	$(RUN) predict.py --checkpoint $(DEMO_RUN)/checkpoint-*-best.pth --top_k 1 \
		--output demo/predictions $(DEMO)/Hands/Hand_0000002.jpg
	@echo; echo "The pictures of the demo:"; find demo -name '*.png' | sort
	$(RUN) report.py --run_dir $(DEMO_RUN)
	@echo; echo "The reports of the demo, to open in a browser:"; ls $(DEMO_RUN)/*.html $(DEMO_RUN)/*/report.html

# The page of the demo's model and people, until Ctrl-C.
app: $(VENV)/installed-extra
	@test -f $(DEMO_RUN)/training.html || { echo "no demo: run make demo first"; exit 1; }
	$(enroll)
	$(RUN) app.py --checkpoint $(DEMO_RUN)/checkpoint-*-best.pth --gallery demo/hands.sqlite

test: $(VENV)/installed-dev
	$(RUN) -m pytest -m "not slow and not real"

test-slow: $(VENV)/installed-dev
	$(RUN) -m pytest -m "slow or real" -rs

lint: $(VENV)/installed-dev
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy .

format: $(VENV)/installed-dev
	$(RUN) -m ruff check --fix .
	$(RUN) -m ruff format .

# Everything in doc_images/ but architecture.svg and time_to_accuracy.png, from drawn hands only.
pictures: demo $(VENV)/installed-dev
	$(enroll)
	$(RUN) dataset_11k_synthetic.py --output $(DEMO) --identities 30 --images_per_identity 12 \
		--contact_sheet doc_images/drawn_hands.png
	cp $(DEMO_RUN)/checkpoint-*-val/sample_grid.png doc_images/sample_grid.png
	cp demo/predictions/0001_*.png doc_images/prediction.png
	@test -n "$(CHROMIUM)" || echo "no chromium found: doc_images/{report,app}_*.png are not redrawn"
	test -z "$(CHROMIUM)" || for width in 1280 400; do "$(CHROMIUM)" --headless=new --no-sandbox \
		--hide-scrollbars --user-data-dir=demo/browser --window-size=$$width,1500 \
		--screenshot=doc_images/report_$$width.png \
		"file://$$(realpath $(DEMO_RUN)/checkpoint-*-val/report.html)" || exit 1; done
	test -z "$(CHROMIUM)" || $(RUN) docs/app_pictures.py "$(CHROMIUM)" $(DEMO_RUN)/checkpoint-*-best.pth \
		demo/hands.sqlite $(DEMO)/Hands/Hand_0000002.jpg

clean:
	rm -rf demo .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './.venv*' -prune -exec rm -rf {} +
