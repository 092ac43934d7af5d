"""Models that are neither causal language models nor image classifiers are refused, by their config and in memory."""

import pytest
import torch
import transformers
from cases import make_trainer, text_rows
from tiny import tiny_gpt2, tiny_llama, tiny_tokenizer, tiny_vit
from torch import nn
from transformers import AutoConfig

from hf_unlearn.audit.run import audit
from hf_unlearn.audit.table.score import score
from hf_unlearn.models.kinds import kind_of, require_class, require_kind
from hf_unlearn.models.load import load_model, require_model


SIZE = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
TEXT = SIZE | {"vocab_size": 64}
IMAGE = SIZE | {"image_size": 16, "patch_size": 8}
T5 = {"vocab_size": 64, "d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2}
BART = {"vocab_size": 64, "d_model": 16, "decoder_layers": 1, "decoder_ffn_dim": 16, "decoder_attention_heads": 2}
EXPERTS = TEXT | {"num_key_value_heads": 2, "num_local_experts": 4}
OTHERS = [
    ("BertForMaskedLM", "BertConfig", TEXT, "a masked language model"),
    ("BertLMHeadModel", "BertConfig", TEXT, "is_decoder=False"),
    ("RobertaForCausalLM", "RobertaConfig", TEXT, "is_decoder=False"),
    ("T5ForConditionalGeneration", "T5Config", T5, "an encoder-decoder"),
    ("LlamaForSequenceClassification", "LlamaConfig", TEXT, "a classifier of texts"),
    ("LlamaModel", "LlamaConfig", TEXT, "a model without a head"),
    ("GPT2Model", "GPT2Config", {"vocab_size": 64, "n_embd": 16, "n_layer": 1, "n_head": 2}, "a model without a head"),
    ("ViTModel", "ViTConfig", IMAGE, "a model without a head"),
    ("GitForCausalLM", "GitConfig", TEXT | {"vision_config": IMAGE}, "a multimodal model"),
]
OURS = [
    ("BertLMHeadModel", "BertConfig", TEXT | {"is_decoder": True}, "text"),
    ("BartForCausalLM", "BartConfig", BART, "text"),
    ("MambaForCausalLM", "MambaConfig", {"vocab_size": 64, "hidden_size": 16, "num_hidden_layers": 1}, "text"),
    ("MixtralForCausalLM", "MixtralConfig", EXPERTS, "text"),
    ("GPTNeoXForCausalLM", "GPTNeoXConfig", TEXT, "text"),
    ("SwinForImageClassification", "SwinConfig", {"image_size": 16, "embed_dim": 8, "depths": [1], "num_heads": [2], "window_size": 2}, "image"),
    ("CLIPForImageClassification", "CLIPConfig", {"vision_config": IMAGE}, "image"),
]  # fmt: skip


def build(name: str, config: str, size: dict):
    return getattr(transformers, name)(getattr(transformers, config)(**size)).eval()


@pytest.mark.parametrize(("name", "config", "size", "message"), OTHERS, ids=[case[0] for case in OTHERS])
def test_another_model_is_refused_by_its_config_and_in_memory(name, config, size, message, tmp_path):
    model = build(name, config, size)
    model.save_pretrained(tmp_path)
    for refuses in (require_model, load_model):
        with pytest.raises(ValueError, match=f"The architecture is {name}.*{message}.*Needed is a causal") as caught:
            refuses(str(tmp_path))
        assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match=f"{name}.*{message}.*Needed is a causal"):
        require_kind(model)


@pytest.mark.parametrize(("name", "config", "size", "kind"), OURS, ids=[case[0] for case in OURS])
def test_what_can_be_run_is_let_through(name, config, size, kind, tmp_path):
    model = build(name, config, size)
    require_kind(model)
    model.save_pretrained(tmp_path)
    require_model(str(tmp_path))
    assert kind_of(AutoConfig.from_pretrained(tmp_path)) == kind
    assert type(load_model(str(tmp_path))) is type(model)


def test_a_config_without_architectures_is_what_its_type_says():
    for model, kind in ((tiny_llama(), "text"), (tiny_vit(), "image")):
        model.config.architectures = None
        assert kind_of(model.config) == kind
    with pytest.raises(ValueError, match="a t5"):
        kind_of(transformers.T5Config())


def test_a_class_of_another_architecture_is_refused():
    """A Gemma has the names and shapes of a Llama, and other outputs."""
    config = transformers.GemmaConfig(architectures=["LlamaForCausalLM"])
    with pytest.raises(ValueError, match="model_type 'gemma' is of GemmaForCausalLM"):
        kind_of(config)
    config.architectures = ["OurOwnNameOfIt"]
    assert kind_of(config) == "text"


@pytest.mark.parametrize("architectures", [1, "LlamaForCausalLM", [1]])
def test_architectures_that_are_no_names(architectures):
    config = transformers.LlamaConfig()
    config.architectures = architectures
    with pytest.raises(ValueError, match="no list of names"):
        kind_of(config)


class Peeks(nn.Module):
    """A language model of somebody's own, in which each token sees the last one."""

    def __init__(self):
        super().__init__()
        self.inner, self.config, self.device = tiny_llama(), tiny_llama().config, torch.device("cpu")
        self.passes = 0

    def forward(self, input_ids, **inputs):
        self.passes += 1
        out = self.inner(input_ids=input_ids)
        out.logits = out.logits + out.logits[:, -1:]
        return out


def test_a_class_that_is_not_known_is_judged_by_what_it_does():
    assert require_class(Peeks()) is None
    with pytest.raises(ValueError, match="a Peeks whose predictions change with the tokens that come after them"):
        require_kind(Peeks())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_rounding_is_no_look_ahead(dtype):
    for model in (tiny_llama(), tiny_gpt2(), build("MixtralForCausalLM", "MixtralConfig", EXPERTS)):
        require_kind(model.to(dtype).train())
        assert model.training


def test_a_model_is_asked_once():
    model, passes = tiny_llama(), []
    model.register_forward_hook(lambda *_: passes.append(1))
    require_kind(model)
    require_kind(nn.DataParallel(model))
    assert len(passes) == 1
    require_kind(tiny_llama().to("meta"))  # has no weights to run


def test_every_door_refuses_an_object(tmp_path):
    model = build("BertForMaskedLM", "BertConfig", TEXT | {"vocab_size": 320, "max_position_embeddings": 128})
    rows = text_rows(4)
    for use in (
        lambda: make_trainer("npo", tmp_path, model=model),
        lambda: make_trainer("npo", tmp_path, ref_model=model),
        lambda: score(model, tiny_tokenizer(), rows),
        lambda: audit(tiny_llama(), retrained=model, split={"forget": rows}, processing_class=tiny_tokenizer()),
    ):
        with pytest.raises(ValueError, match="BertForMaskedLM, a masked language model"):
            use()


def test_the_audit_asks_for_every_name_before_it_runs_a_model(tmp_path):
    model = tiny_llama()
    model.register_forward_pre_hook(lambda *_: pytest.fail("The model was run"))
    build("BertForMaskedLM", "BertConfig", TEXT).save_pretrained(tmp_path / "bert")
    for name, message in (("nothing", "There is no model"), ("bert", "a masked language model")):
        with pytest.raises(ValueError, match=f"The retrained model: .*{message}"):
            audit(model, retrained=str(tmp_path / name), split={"forget": text_rows(4)})
