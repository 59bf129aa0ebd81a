"""Every option of every configuration group: it composes, what it names exists, and what is cheap is made."""

import functools
import inspect

import pytest
import torch
from hydra.utils import get_object
from lightning.fabric.plugins.environments import LightningEnvironment
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import Strategy
from omegaconf import DictConfig, ListConfig, OmegaConf
from PIL import Image

import lightning_decgan.metrics
from lightning_decgan.cli.build import make, make_run
from lightning_decgan.cli.config import compose, config_dir, options
from lightning_decgan.cli.errors import UsageError
from lightning_decgan.gan import DecentralizedGANModule
from lightning_decgan.metrics import ClassifierFeatures
from lightning_decgan.topology import TOPOLOGIES

GROUPS = sorted(folder.name for folder in config_dir().iterdir() if folder.is_dir())
OPTIONS = [(group, option) for group in GROUPS for option in options(group)]
# what a data set cannot be made without, and no default can know
NEEDED = {
    name: ["data.root=/nowhere"]
    for name in ("image_folder", "cifar10", "celeba", "lsun", "imagenet", "cifar10_wgan_gp")
}
NEEDED["torchvision"] = ["data.root=/nowhere", "data.name=SVHN"]


def size_for(model):
    """A size of images that a model draws: the residual ones are made for a few sizes only."""
    return 16 if model.startswith("dcgan") else 32


@pytest.fixture(autouse=True)
def no_training_of_features(monkeypatch):
    """A feature network is made, not trained: that takes longer than all these tests."""

    def untrained(datamodule, **_):
        return ClassifierFeatures(
            datamodule.channels, datamodule.image_size, 10, name=f"{datamodule.name}_cnn"
        ).freeze()

    monkeypatch.setattr(lightning_decgan.metrics, "train_classifier_features", untrained)


def targets(node, where=""):
    """All sections with a `_target_`, innermost too."""
    if isinstance(node, DictConfig):
        if "_target_" in node:
            yield where, node
        for key in node:
            if not OmegaConf.is_missing(node, key):
                yield from targets(node._get_node(key), f"{where}.{key}".lstrip("."))
    elif isinstance(node, ListConfig):
        for index, item in enumerate(node):
            yield from targets(item, f"{where}[{index}]")


def composed(group, option):
    return compose([f"{group}={option}", *NEEDED.get(option, [])])


def test_the_groups_are_those_that_the_documentation_promises():
    assert set(GROUPS) == {
        *("data", "model", "optim", "loss", "strategy", "topology", "trainer", "callbacks", "logger", "experiment"),
        "debug",
    }


@pytest.mark.parametrize("option", options("trainer"))
def test_every_trainer_validates_and_ends_alike(option):
    ours, usual = compose([f"trainer={option}"]).trainer, compose(["trainer=cpu"]).trainer
    assert set(usual) <= set(ours)
    assert {key for key in usual if ours[key] != usual[key]} <= {"accelerator", "devices", "precision"}


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_gpu_that_is_not_there_is_bad_input():
    with pytest.raises(UsageError, match="trainer: No supported gpu backend found"):
        make(compose(["trainer=gpu_shared"]), "trainer")


@pytest.mark.parametrize(("group", "option"), OPTIONS)
def test_every_option_composes_resolves_and_names_things_that_exist(group, option):
    config = composed(group, option)
    text = OmegaConf.to_yaml(config, resolve=True)
    assert "${" not in text
    found = list(targets(config))
    assert found
    for where, section in found:
        target = get_object(section["_target_"])
        known = inspect.signature(target).parameters
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in known.values()):
            unknown = {key for key in section if not key.startswith("_")} - set(known)
            assert not unknown, f"{where}: {section['_target_']} has no argument {unknown}"


@pytest.mark.parametrize(("group", "option"), OPTIONS)
def test_files_override_defaults_and_never_restate_them(group, option):
    for where, section in targets(composed(group, option)):
        parameters = inspect.signature(get_object(section["_target_"])).parameters
        for key in section:
            value = section._get_node(key)
            if key not in parameters or OmegaConf.is_interpolation(section, key) or OmegaConf.is_missing(section, key):
                continue
            if key == "loss":  # the option of a group, also where it is the default one
                continue
            assert (
                parameters[key].default != OmegaConf.to_container(value)
                if OmegaConf.is_config(value)
                else (
                    parameters[key].default != section[key] or type(parameters[key].default) is not type(section[key])
                )
            ), f"{where}.{key} is {section[key]!r} without being told"


@pytest.mark.parametrize("option", options("loss"))
@pytest.mark.parametrize("model", options("model"))
def test_every_model_is_made_with_every_loss_and_draws_images_of_the_data(model, option):
    size = size_for(model)
    changes = [f"image_size={size}", "++model.generator.width=4", "++model.discriminator.width=4"]
    module = make(compose([f"model={model}", f"loss={option}", *changes]), "model")
    assert isinstance(module, DecentralizedGANModule)
    assert module.sample(2).shape == (2, 1, size, size)


@pytest.mark.parametrize("model", options("model"))
def test_every_model_has_a_class_conditional_form(model):
    changes = [f"image_size={size_for(model)}", "++model.generator.width=4", "++model.discriminator.width=4"]
    config = compose([f"model={model}", "num_classes=10", *changes])
    generator, discriminator = make(config, "model.generator"), make(config, "model.discriminator")
    assert generator.num_classes == discriminator.num_classes == 10
    labels = torch.tensor([0, 9])
    assert discriminator(generator(torch.randn(2, generator.latent_dim), labels), labels).shape == (2,)


@pytest.mark.parametrize(
    ("model", "size", "parameters"),
    [
        ("resnet", 32, (1_203_331, 1_053_825)),
        ("resnet_spectral", 32, (4_274_435, 1_053_825)),
        ("resnet_small", 32, (125_731, 66_849)),
        ("sagan_small", 32, (127_012, 68_130)),
    ],
)
def test_a_model_of_colour_images_has_the_size_that_its_file_promises(model, size, parameters):
    config = compose([f"model={model}", f"image_size={size}", "channels=3"])
    players = make(config, "model.generator"), make(config, "model.discriminator")
    assert tuple(sum(p.numel() for p in player.parameters()) for player in players) == parameters


@pytest.mark.parametrize("option", options("optim"))
def test_every_optimizer_takes_the_learning_rates_of_the_players(option):
    config = compose([f"optim={option}", "++model.generator_lr=0.001", "++model.discriminator_lr=0.002"])
    factory = make(config, "optim")
    assert isinstance(factory, functools.partial)
    discriminator, generator = make(config, "model").configure_optimizers()
    assert (discriminator.defaults["lr"], generator.defaults["lr"]) == (0.002, 0.001)
    assert type(generator) is factory.func


def test_every_topology_has_an_option():
    assert options("topology") == sorted(TOPOLOGIES)


@pytest.mark.parametrize("option", options("topology"))
def test_a_topology_option_is_the_topology_of_that_name_with_all_workers(option):
    topology = make(compose([f"topology={option}", "workers=8"]), "topology")
    assert (topology.name, topology.workers) == (option, 8)


@pytest.mark.parametrize("option", ["random_matching", "random_ring"])
def test_random_topologies_follow_the_seed_of_the_run(option):
    described = [make(compose([f"topology={option}", f"seed={seed}"]), "topology").describe() for seed in (1, 2, 1)]
    assert described[0] == described[2] != described[1]


@pytest.mark.parametrize("option", options("strategy"))
def test_every_strategy_makes_a_trainer(option, tmp_path):
    config = compose([f"strategy={option}", "callbacks=none", "logger=none"], run_dir=tmp_path)
    trainer, _, _ = make_run(config)
    assert isinstance(trainer, Trainer)
    assert isinstance(trainer.strategy, Strategy)
    assert trainer.world_size == (1 if option == "single" else 4)
    if option.startswith("gossip"):
        assert trainer.strategy.topology.name == "one_peer_exponential"
        assert trainer.strategy.overlap is (option == "gossip")
    assert list(tmp_path.iterdir()) == [], "making a run writes nothing"


@pytest.mark.parametrize("option", options("callbacks"))
def test_every_choice_of_callbacks_is_made_and_ends_the_run(option, tmp_path, monkeypatch):
    # Inception's weights are not to be had everywhere; which network it is does not matter here.
    stand_in = ClassifierFeatures(1, 8, 10, name="stand_in")
    monkeypatch.setattr("lightning_decgan.metrics.inception_features", lambda: stand_in)
    config = compose([f"callbacks={option}", "steps=7"], run_dir=tmp_path)
    callbacks = {
        name: make(config, f"callbacks.{name}") for name, entry in config.callbacks.items() if entry is not None
    }
    assert all(isinstance(callback, Callback) for callback in callbacks.values())
    assert callbacks["stop"].steps == 7
    assert ("fidelity" in callbacks) is (option in ("default", "debug", "early_stopping", "inception"))
    assert (option == "inception") is ("fidelity" in callbacks and callbacks["fidelity"].features_name == "stand_in")


@pytest.mark.parametrize("option", options("logger"))
def test_every_logger_writes_into_the_run_folder(option, tmp_path):
    config = compose([f"logger={option}"], run_dir=tmp_path)
    for name in config.logger:
        logger = make(config, f"logger.{name}")
        logger.log_metrics({"a": 1.0}, step=0)
        logger.save()
        logger.finalize("success")
        assert list((tmp_path / name).iterdir()), name


@pytest.mark.parametrize("option", options("experiment"))
def test_every_experiment_is_a_whole_run(option, tmp_path):
    # No experiment is told here where its data or its accelerators are.
    given, folder = ["trainer.accelerator=cpu"], tmp_path / "train"
    if option in ("imagenet_sagan", "cifar10_wgan_gp"):
        given.append("batch_size=1")  # on up to eight workers
        for number in range(2):
            (folder / f"{number}").mkdir(parents=True)
            for image in range(6):
                Image.new("RGB", (8, 8)).save(folder / f"{number}" / f"{image}.png")
    if option == "imagenet_sagan":
        given += [f"data.root={folder}", "num_classes=2"]
    config = compose([f"experiment={option}", *given, *NEEDED.get(option, [])], run_dir=tmp_path)
    if option == "cifar10_wgan_gp":
        few = [f"data.root={folder}", "+data.validation_fraction=0.5", "batch_size=1"]
        config.data = compose(["data=image_folder", *few]).data
        OmegaConf.update(config, "callbacks.fidelity.kernel_subset_size", 2, force_add=True)
    elif option not in ("digits", "imagenet_sagan"):
        config.data = compose(["data=digits"]).data
    trainer, model, datamodule = make_run(config)
    assert isinstance(model, DecentralizedGANModule)
    assert trainer.world_size == config.workers
    assert datamodule.batch_size == config.batch_size


@pytest.mark.parametrize("option", options("debug"))
def test_debug_runs_are_short_and_combine_with_experiments(option):
    config = compose([f"debug={option}", "experiment=digits"])
    assert config.steps <= 100
    assert config.workers <= 4


@pytest.mark.parametrize("option", options("experiment"))
def test_every_experiment_has_a_debug_run_of_small_networks(option):
    needed = NEEDED["image_folder"] if option == "imagenet_sagan" else NEEDED.get(option, [])
    config = compose([f"experiment={option}", "debug=default", *needed])
    assert isinstance(make(config, "model"), DecentralizedGANModule)
    assert config.steps == 4


def test_the_last_checkpoint_is_written_when_the_others_have_been(tmp_path):
    trainer, _, _ = make_run(compose(["logger=none"], run_dir=tmp_path))
    kept = [callback.filename for callback in trainer.callbacks if isinstance(callback, ModelCheckpoint)]
    assert kept == ["best", "last"], "the state of the first is in the second"


def test_a_batch_system_does_not_change_how_workers_are_started(tmp_path, monkeypatch):
    for name, value in (("NTASKS", "1"), ("JOB_NAME", "train"), ("JOB_ID", "7"), ("PROCID", "0"), ("LOCALID", "0")):
        monkeypatch.setenv(f"SLURM_{name}", value)
    trainer, _, _ = make_run(compose(["workers=4", "logger=none"], run_dir=tmp_path))
    assert isinstance(trainer.strategy.cluster_environment, LightningEnvironment)
    assert trainer.world_size == 4


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["++strategy.rounds=0"], r"^strategy: rounds must be an integer >= 1, found 0$"),
        (["++strategy.round=2"], r"^strategy: .*unexpected keyword argument 'round'"),
        (["++callbacks.sample_gird.samples=4"], r"^callbacks.sample_gird must say what to make by a _target_"),
        (["++model.generator.width=-1"], r"^model.generator: width must be an integer >= 1, found -1$"),
        (
            ["channels=3"],
            r"^model and data do not fit: the generator's channels must be 1, .*Digits.*, found 3$",
        ),
        (
            ["++model.discriminator.image_size=32", "++model.generator.image_size=32"],
            r"^model and data do not fit: the generator's image_size must be 16, .* found 32$",
        ),
        (["num_classes=5"], r"^model and data do not fit: num_classes must be 10, the classes of .*, found 5$"),
        (["model=resnet"], r"^model.generator: image_size must be one of 32, 48, 64, found 16$"),
        (["model=sagan", "image_size=48"], r"^model.generator: image_size must be one of 32, 64, 128, found 48$"),
        (["topology=hypercube", "workers=6"], r"^strategy.topology: .*6"),
        (["model.generator._target_=lightning_decgan.gan.Nothing"], r"^model.generator: .*Nothing"),
        (["++strategy.start_method=popen"], r"^strategy must start its workers with start_method=spawn or fork"),
        (["strategy=single", "++trainer.devices=2"], r"^strategy must start its workers with start_method=spawn"),
        (["ckpt_path=/nowhere/last.ckpt"], r"^ckpt_path must be a checkpoint .* '/nowhere/last.ckpt'"),
        (["++strategy.topology=[[1,1],[1,1]]", "workers=2"], r"^trainer: .*(stochastic|sum)"),
    ],
)
def test_what_cannot_be_used_is_said_in_one_line_that_names_the_place(overrides, message, tmp_path):
    with pytest.raises(UsageError, match=message) as caught:
        make_run(compose([*overrides, "callbacks=none", "logger=none"], run_dir=tmp_path))
    assert "\n" not in str(caught.value)


def test_a_checkpoint_of_other_networks_is_not_resumed(tmp_path):
    config = compose(["callbacks=none", "logger=none"], run_dir=tmp_path)
    path = tmp_path / "last.ckpt"
    torch.save({"state_dict": make(config, "model").state_dict()}, path)
    make_run(compose(["callbacks=none", "logger=none", f"ckpt_path={path}"], run_dir=tmp_path))
    wider = ["callbacks=none", "logger=none", f"ckpt_path={path}", "++model.generator.width=5"]
    with pytest.raises(UsageError, match=r"of other networks than this run's: .* there and \(.*\) here; repeat the"):
        make_run(compose(wider, run_dir=tmp_path))
    path.write_bytes(b"no checkpoint")
    with pytest.raises(UsageError, match=r"^ckpt_path .*last.ckpt cannot be read as a checkpoint: "):
        make_run(compose(["callbacks=none", "logger=none", f"ckpt_path={path}"], run_dir=tmp_path))
