"""From words to one composed config."""

import random

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from runner.config.compose import compose, quoted

TEXTS = ["it's", "a\\'b", "a\\", "${x}", "\\${y}", "a b,c={d}[e](f)", "ünï", '"q"', "'", "a:b", "$x", "", "tab\tx"]


@pytest.mark.parametrize("text", TEXTS)
def test_any_text_can_be_quoted_as_an_overrides_value(text):
    assert read_back(quoted("name", text)) == text


def test_so_can_random_texts_of_what_the_grammar_knows():
    rng = random.Random(0)
    for _ in range(500):
        text = "".join(rng.choice("a'\"\\${}, =") for _ in range(rng.randint(1, 8)))
        assert read_back(quoted("name", text)) == text, text


def read_back(word):
    (override,) = OverridesParser.create().parse_overrides([word])
    return OmegaConf.create({"name": override.value()}).name


def test_a_quoted_path_composes():
    path = "/x/it's/${a}"
    assert compose([quoted("hydra.run.dir", path)])[1].hydra.run.dir == path
