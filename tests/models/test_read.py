import copy
from dataclasses import replace

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from offkey.data import Batch, Role
from offkey.errors import BadInput, BadValue, NonFinite, UnmappedModel
from offkey.models import (
    ChoiceLogitDifference,
    Edit,
    Model,
    ResponseCrossEntropy,
    Site,
    TopLogProb,
)
from offkey.testing.family import close, hook_count
from offkey.testing.random_models import (
    DETECTED,
    FAMILIES,
    batch_of,
    even_batch,
    outputs,
    padded_batch,
    random_model,
    random_module,
)


@pytest.fixture(scope="module")
def model():
    return random_model("llama")


def test_reductions_of_the_token_axis(model):
    batch = padded_batch()
    full = model.read(batch, "resid_post.1", positions="all")["resid_post.1"]

    def read(positions):
        return model.read(batch, "resid_post.1", positions=positions)["resid_post.1"]

    assert torch.equal(read("last"), full[:, -1])
    assert torch.equal(read((-1, -4)), full[:, [-1, -4]])
    by_hand = torch.stack([x[keep].mean(0) for x, keep in zip(full, batch.mask, strict=True)])
    close(read("mean"), by_hand)


def test_nothing_but_what_is_asked_for_is_kept(model):
    value = model.read(padded_batch(), "resid_post.1")["resid_post.1"]
    assert value.untyped_storage().nbytes() == value.numel() * value.element_size()
    assert not value.is_inference()
    nn.Linear(32, 1)(value).sum().backward()


def test_offsets_beyond_a_prompt(model):
    with pytest.raises(BadInput, match="prompt 7-11-3-9-2: it has 5 tokens"):
        model.read(padded_batch(), "embed", positions=(-6,))
    with pytest.raises(BadInput, match="prompt 7-11-3-9-2: it has 5 tokens, and position 5 was"):
        model.read(padded_batch(), "embed", positions=(5,))
    for wrong in ({}, (), "first"):
        with pytest.raises(BadValue, match="positions"):
            model.read(padded_batch(), "embed", positions=wrong)


def counted(model, call):
    """How many blocks a call runs."""
    seen = []
    handles = [
        block.module.register_forward_hook(lambda *_: seen.append(1))
        for block in model.wiring.blocks
    ]
    call()
    for handle in handles:
        handle.remove()

    return len(seen)


def test_the_pass_stops_after_the_last_site(model):
    batch = padded_batch()
    assert counted(model, lambda: model.read(batch, "resid_post.0")) == 1
    assert counted(model, lambda: model.read(batch, ["embed", "q.1"])) == 1
    assert counted(model, lambda: model.read(batch, "resid_pre.0", until="resid_post.1")) == 2
    assert counted(model, lambda: model.read(batch, "embed", logits=True)) == 3
    assert counted(model, lambda: model.read(batch, "embed", metric=TopLogProb())) == 3
    assert hook_count(model.module) == 0


def test_only_the_logits_needed_are_computed(model):
    batch = padded_batch()
    widths = []
    handle = model.wiring.unembedding.register_forward_hook(
        lambda m, args, out: widths.append(out.shape[1])
    )
    reading = model.read(batch, "final", logits=True)
    model.read(batch, "logits", positions=(-3, -1))
    model.read(batch, "embed", positions="all", logits=True)
    handle.remove()

    assert widths == [1, 3, 8]
    assert torch.equal(reading.logits, outputs(model, batch, logits_to_keep=1).logits[:, 0])
    two = model.read(batch, "logits", positions=(-3, -1), logits=True)
    assert two.logits.shape == (3, 2, 61)
    assert torch.equal(two["logits"], two.logits)


def test_logits_for_a_response_reach_back_to_what_predicts_it(model):
    batch = padded_batch()
    roles = batch.roles.clone()
    roles[0, -1], roles[1, -3:], roles[2, -2:] = Role.RESPONSE, Role.RESPONSE, Role.RESPONSE
    batch = replace(batch, roles=roles)
    widths = []
    handle = model.wiring.unembedding.register_forward_hook(
        lambda m, args, out: widths.append(out.shape[1])
    )
    metric = model.read(batch, (), metric=ResponseCrossEntropy()).metric
    handle.remove()

    logp = outputs(model, batch).logits.log_softmax(-1)
    tokens = batch.inputs["input_ids"]
    expected = [
        -sum(logp[row, t - 1, tokens[row, t]] for t in range(8 - n, 8)) / n
        for row, n in enumerate((1, 3, 2))
    ]
    assert widths == [4]
    close(metric, torch.stack(expected))


@pytest.mark.parametrize("allowed", [False, True])
def test_nan_inside_names_site_and_prompt(allowed):
    model = random_model("llama")
    batch = padded_batch()
    poison = Edit("mlp_out.1", "replace", float("nan"), ids=(batch.ids[1],), positions="last")
    sites = ["resid_post.0", "resid_post.1"]
    if allowed:
        reading = model.read(batch, sites, edit=[poison], allow_nonfinite=True)
        assert reading["resid_post.1"][1].isnan().all()
        assert reading["resid_post.1"][[0, 2]].isfinite().all()
        return
    with pytest.raises(NonFinite, match="site resid_post.1, prompt 4-8-15-16-23-42-6: NaN"):
        model.read(batch, sites, edit=[poison])


def test_nan_in_padding_is_no_error(model):
    batch = padded_batch()

    def poison(x, batch):
        return x.masked_fill(~batch.mask[..., None], torch.nan)

    with model.hooked({"resid_post.2": lambda x: poison(x, batch)}):
        model.read(batch, "resid_post.2", positions="all")


@pytest.mark.parametrize("name", FAMILIES)
def test_gradients_agree_with_finite_differences(name):
    model = Model(random_module(name, dtype=torch.float64), name=name)
    # In float64 the masks of transformers overflow in its float32 softmax where a row is padded;
    # norms and softmax round to float32 inside, so that the step must not be small.
    batch, metric = even_batch(), ChoiceLogitDifference()
    inside = "attn_in q k v pattern z head_out attn_out mlp_in mlp_act".split()
    kinds = ["embed", "resid_pre.1", *(f"{kind}.1" for kind in inside)]
    kinds += ["mlp_out.2", "final", "logits"]
    kinds += [] if model.wiring.parallel else ["resid_mid.1"]
    sites = model.sites_at(kinds)
    reading = model.read(batch, sites, gradients=sites, metric=metric, positions=(-1, -2))

    for site in sites:
        generator = torch.Generator().manual_seed(1)
        shape = reading.values[site].shape[2:]
        step = 3e-3 * torch.randn(shape, generator=generator, dtype=torch.float64)
        near, far = (difference(model, batch, site, h * step) for h in (1, 2))
        slope = (reading.grads[site] * step).flatten(1).sum(1)
        torch.testing.assert_close((8 * near - far) / 12, slope, rtol=5e-3, atol=1e-6)


def difference(model, batch, site, step):
    """How much the metric changes from one side of the site's last two tokens to the other."""
    ends = [
        model.read(
            batch,
            (),
            metric=ChoiceLogitDifference(),
            edit=[Edit(site, "add", sign * step, positions=(-1, -2))],
        ).metric
        for sign in (1, -1)
    ]

    return ends[0] - ends[1]


@pytest.mark.parametrize("kernel", ["eager", "sdpa"])
@pytest.mark.parametrize("frozen", [False, True])
def test_gradients_at_heads_are_those_of_a_trainable_model(kernel, frozen):
    """Queries, keys, values and heads, whether or not the model's own weights are frozen."""
    model = random_model("qwen3", kernel=kernel)
    model.module.requires_grad_(not frozen)
    batch, metric = padded_batch(), TopLogProb()
    sites = model.sites_at(["q.*", "k.*", "v.*", "z.*", "resid_mid.*"])
    reading = model.read(batch, sites, gradients=sites, metric=metric, positions="all")

    twin = Model(copy.deepcopy(model.module).requires_grad_(not frozen), name="twin")
    twin.wiring.embedding.weight.requires_grad_(True)
    kept = {}

    def keep(site):
        def visit(x):
            kept[site] = x
            return x if site.kind in "qkvz" else None

        return visit

    with twin.hooked({site: keep(site) for site in sites}):
        logits = twin.forward(batch, logits_to_keep=1).logits[:, -1]
    expected = torch.autograd.grad(metric(logits, batch).sum(), [kept[site] for site in sites])
    for site, grad in zip(sites, expected, strict=True):
        assert torch.equal(reading.grads[site], grad), site
    assert all(weight.grad is None for weight in model.module.parameters())


def test_gradients_need_a_metric(model):
    with pytest.raises(BadValue, match="none was given"):
        model.read(padded_batch(), "embed", gradients="embed")


def test_patterns_need_the_eager_kernel():
    with pytest.raises(BadValue, match='attn_implementation="eager"'):
        random_model("llama", kernel="sdpa").read(padded_batch(), "pattern.0")


def test_an_adapter_does_not_hide_the_sites():
    module = random_module("llama")
    plain = Model(copy.deepcopy(module), name="plain")
    targets = ["q_proj", "o_proj", "down_proj"]
    wrapped = get_peft_model(module, LoraConfig(r=2, target_modules=targets))
    model = Model(wrapped, name="wrapped", adapter="lora")
    batch = padded_batch()

    assert [site.name for site in model.sites] == [site.name for site in plain.sites]
    assert model.site("mlp_act.0").shape == (48,)
    reading = model.read(batch, model.sites, positions="all", logits=True)
    expected = plain.read(batch, plain.sites, positions="all", logits=True)
    for site in plain.sites:
        close(reading[site], expected[site])

    with torch.no_grad():
        for name, weight in wrapped.named_parameters():
            if "lora_B" in name:
                weight.normal_(generator=torch.Generator().manual_seed(0))
    assert torch.equal(
        model.read(batch, (), logits=True, positions="all").logits, outputs(model, batch).logits
    )
    made = model.read(batch, "logits", positions="all", edit=[Edit("logits", "add", 1.0)])
    expected = outputs(model, batch).logits + 1
    assert torch.equal(made["logits"][batch.mask], expected[batch.mask])
    path = "module:model.layers.0.mlp"
    assert torch.equal(model.read(batch, path)[path], model.read(batch, "mlp_out.0")["mlp_out.0"])


def test_module_sites_of_a_language_model(model):
    batch = padded_batch()
    paths = ["module:model.layers.1.mlp", "module:model.layers.1.mlp:in"]
    reading = model.read(batch, [*paths, "mlp_out.1", "mlp_in.1"])
    assert torch.equal(reading[paths[0]], reading["mlp_out.1"])
    assert torch.equal(reading[paths[1]], reading["mlp_in.1"])


def test_the_pass_must_get_there(model):
    unused = copy.deepcopy(model.module)
    unused.extra = nn.Linear(2, 2)
    with pytest.raises(BadValue, match="module:extra: the forward pass never gets there"):
        Model(unused, name="unused").read(padded_batch(), "module:extra")


def test_sites_compare_by_name_alone(model):
    batch = batch_of([[5, 6, 7]])
    reading = model.read(batch, Site("resid_post", 1))
    assert torch.equal(reading[Site("resid_post", 1)], reading["resid_post.1"])
    assert next(iter(reading.values)).shape == (32,)


class Two(nn.Module):
    """A plain module of two inputs, with an activation in place."""

    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Linear(3, 4), nn.Linear(2, 4)
        self.act = nn.ReLU(inplace=True)
        self.head = nn.Linear(4, 5)

    def forward(self, a, b):
        return self.head(self.act(self.left(a) + self.right(b)))


@pytest.fixture
def plain():
    torch.manual_seed(0)
    inputs = {"a": torch.randn(6, 3), "b": torch.randn(6, 2)}
    return Model(Two(), name="two"), Batch(inputs, ids=tuple("uvwxyz"))


def test_plain_modules_are_read(plain):
    model, batch = plain
    reading = model.read(
        batch, ["module:left", "module:head:in", "logits"], positions="all", logits=True
    )
    a, b = batch.inputs["a"], batch.inputs["b"]
    hidden = torch.relu(model.module.left(a) + model.module.right(b))
    assert torch.equal(reading["module:left"], model.module.left(a))
    assert torch.equal(reading["module:head:in"], hidden)
    assert torch.equal(reading.logits, model.module.head(hidden))
    assert torch.equal(reading["logits"], reading.logits)


def test_plain_modules_take_a_single_input_by_place():
    model = Model(nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(8, 3)), name="conv")
    images = torch.randn(2, 1, 4, 4)
    reading = model.read(Batch({"image": images}, ids=("a", "b")), "module:0", metric=TopLogProb())
    assert torch.equal(reading["module:0"], model.module[0](images))
    close(reading.metric, model.module(images).log_softmax(-1).max(-1).values)


def test_plain_modules_are_edited_and_differentiated(plain):
    model, batch = plain
    v = torch.arange(4.0)
    rows = Edit("module:left", "replace", torch.stack([v, -v]), ids=("w", "nobody"))
    reading = model.read(
        batch, "module:left", edit=[rows, Edit("logits", "scale", 2.0)], logits=True
    )
    left = model.module.left(batch.inputs["a"]).detach()
    left[2] = v
    hidden = torch.relu(left + model.module.right(batch.inputs["b"]))
    assert torch.equal(reading["module:left"], left)
    close(reading.logits, 2 * model.module.head(hidden))

    path = "module:left:in"
    reading = model.read(batch, path, gradients=path, metric=TopLogProb())
    a = batch.inputs["a"].clone().requires_grad_()
    logits = model.module(a, batch.inputs["b"])
    (expected,) = torch.autograd.grad(TopLogProb()(logits, batch).sum(), a)
    assert torch.equal(reading.grads[model.site(path)], expected)
    assert not batch.inputs["a"].requires_grad


def test_named_sites_of_an_unmapped_language_model(model):
    module = random_module("starcoder2")
    for block in module.model.layers:
        block.mlp = nn.Identity()
    broken = Model(module, name="broken")
    with pytest.raises(UnmappedModel):
        broken.read(padded_batch(), "resid_post.0")
    value = broken.read(padded_batch(), "module:model.layers.0", logits=True)
    assert value["module:model.layers.0"].shape == (3, 32)
    assert value.logits.shape == (3, 61)


class Twice(nn.Module):
    """A plain module that runs one of its parts two times."""

    def __init__(self):
        super().__init__()
        self.part, self.head = nn.Linear(3, 3), nn.Linear(3, 2)

    def forward(self, x):
        return self.head(self.part(torch.relu(self.part(x))))


def test_a_module_that_runs_twice_is_refused():
    model, batch = Model(Twice(), name="twice"), Batch({"x": torch.ones(1, 3)}, ids=("a",))
    assert model.read(batch, "module:head", logits=True).logits.shape == (1, 2)
    with pytest.raises(BadValue, match="module:part: its module runs more than once in a pass"):
        model.read(batch, "module:part", logits=True)
    module = random_module("llama")
    module.model.layers[1] = module.model.layers[0]
    with pytest.raises(UnmappedModel, match="a block runs more than once"):
        Model(module, name="shared").site("resid_post.0")


@pytest.mark.parametrize("name", ["llama", "gpt_neox", *DETECTED])
def test_gradients_at_inputs_are_those_of_one_sublayer(name):
    """Where attention and MLP share a norm, or attention is given the residual itself."""
    model = Model(random_module(name, dtype=torch.float64), name=name)
    batch, metric = even_batch(), ChoiceLogitDifference()
    sites = model.sites_at(["resid_post.0", "attn_in.1", "mlp_in.1"])
    together = model.read(batch, (), gradients=sites, metric=metric, positions="all").grads
    for site in sites:
        alone = model.read(batch, (), gradients=site, metric=metric, positions="all").grads[site]
        torch.testing.assert_close(together[site], alone, rtol=1e-6, atol=1e-9)
        step = torch.randn(model.width, generator=torch.Generator().manual_seed(1)).double() * 3e-3
        near, far = (difference(model, batch, site, h * step) for h in (1, 2))
        slope = (alone[:, [-1, -2]] * step).flatten(1).sum(1)
        torch.testing.assert_close((8 * near - far) / 12, slope, rtol=5e-3, atol=1e-6)
