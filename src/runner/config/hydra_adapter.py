"""All that this project needs of Hydra and OmegaConf beyond their public names: checked against hydra-core 1.3.8.

Each entry says what breaks if Hydra moves it; tests/test_hydra_adapter.py has a test that fails by its name. Nothing
else in src/ may import hydra._internal or touch a name of Hydra's that begins with an underscore.
"""

import contextlib
import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from hydra._internal.callbacks import Callbacks
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.types import Override
from hydra.core.utils import JobReturn, run_job
from hydra.initialize import get_gh_backup, restore_gh_from_backup
from hydra.types import HydraContext, RunMode
from omegaconf import DictConfig
from omegaconf import _utils as omegaconf_utils

# Hydra's one step that sees the YAML's values and all overrides, in every mode and under any launcher. It has no public
# hook. If it is renamed, importing this module fails; if it is no longer called, no override is checked: see own_hydra.
APPLY = "_apply_overrides_to_config"
apply_overrides: Callable[[list[Override], DictConfig], None] = getattr(ConfigLoaderImpl, APPLY)

# Where Hydra's own launcher and sweeper are defined, as its YAML files name them.
BASIC_LAUNCHER = "hydra._internal.core_plugins.basic_launcher"
BASIC_SWEEPER = "hydra._internal.core_plugins.basic_sweeper"

OfConfig = Callable[[DictConfig], Any]


def read_yaml_by_libyaml() -> None:
    """OmegaConf's loader on libyaml's parser, where PyYAML has it: the 20 files of a start take a fifth of the time.
    OmegaConf has no public name for its loader; without this one YAML is read as before.
    """
    if not yaml.__with_libyaml__:
        return
    from yaml.constructor import SafeConstructor
    from yaml.cyaml import CParser  # type: ignore[attr-defined]
    from yaml.resolver import Resolver

    class Loader(CParser, omegaconf_utils.get_yaml_loader()):  # type: ignore[misc]
        def __init__(self, stream: Any) -> None:
            CParser.__init__(self, stream)
            SafeConstructor.__init__(self)
            Resolver.__init__(self)

    omegaconf_utils.get_yaml_loader = lambda: Loader


read_yaml_by_libyaml()


def file_of(error: BaseException) -> str:
    """The YAML file that OmegaConf was reading when it raised an error, which its message does not name: a local name
    of OmegaConf.load. If that is renamed, the message says "a YAML file".
    """
    traceback, found = error.__traceback__, "a YAML file"
    while traceback is not None:
        found = str(getattr(traceback.tb_frame.f_locals.get("file_"), "name", found))
        found = str(traceback.tb_frame.f_locals.get("full_path", found))
        traceback = traceback.tb_next
    return found


@contextmanager
def own_hydra(apply: Callable[[list[Override], DictConfig], None]) -> Iterator[None]:
    """Hydra for us alone: in the body it applies overrides by apply(overrides, config), and GlobalHydra, which is
    the process's, is put back afterwards. (get_gh_backup is in hydra.initialize, undocumented; without it a caller
    that uses Hydra too would lose its own.)
    """
    from hydra.core.global_hydra import GlobalHydra

    backup = get_gh_backup()
    GlobalHydra.instance().clear()
    setattr(ConfigLoaderImpl, APPLY, staticmethod(apply))
    try:
        yield
    finally:
        setattr(ConfigLoaderImpl, APPLY, staticmethod(apply_overrides))
        restore_gh_from_backup(backup)


def search_path(folders: Sequence[str]) -> Any:
    """Hydra's search path with the folders in this order; the first that has a file wins. hydra.main and initialize
    take one folder only, and prepend none: without create_config_search_path a user's file could not win over ours.
    """
    path = create_config_search_path(folders[0])
    schema = path.get_path().pop()
    for folder in folders[1:]:
        path.append("runner", folder)
    path.get_path().append(schema)
    return path


def make_hydra(path: Any, conf: str) -> Hydra:
    """Hydra with its plugins. A plugin's stored config gives way to a file of ours in conf/ of the same name
    (hydra/launcher=ray), which Hydra would take for a schema of ours: ConfigStore has no public way to take one out.
    """
    hydra = Hydra.create_main_hydra2("runner", path)
    for file in Path(conf, "hydra").glob("*/*.yaml"):
        ConfigStore.instance().repo.get("hydra", {}).get(file.parent.name, {}).pop(file.name, None)
    return hydra


def composed(hydra: Hydra, config_name: str, overrides: Sequence[str]) -> DictConfig:
    """The config with hydra.* in it, which hydra.compose() leaves out: hydra.run.dir is needed before anything runs."""
    return hydra.compose_config(config_name, list(overrides), RunMode.RUN, with_log_configuration=False)


def run_single(hydra: Hydra, config_name: str, config: DictConfig, task: OfConfig) -> JobReturn:
    """What Hydra.run does after it has composed, with a config that is composed already: see value_of for what the
    task returned or raised. Callbacks has no public name, and run_job, which is public, needs one.

    Raises:
        OSError: the job's directory cannot be written.
    """
    callbacks = Callbacks(config)
    callbacks.on_run_start(config=config, config_name=config_name)
    context = HydraContext(config_loader=hydra.config_loader, callbacks=callbacks)
    job = run_job(task, config, "hydra.run.dir", None, context, configure_logging=False)
    callbacks.on_run_end(config=config, config_name=config_name, job_return=job)
    return job


def run_of_sweep(config: DictConfig, task: OfConfig) -> Any:
    """What a launcher does for one job of a sweep, in another process than the one that composed it.

    Raises:
        What the task raises.
    """
    context = HydraContext(config_loader=None, callbacks=Callbacks(config))  # type: ignore[arg-type]
    return value_of(run_job(task, config, "hydra.sweep.dir", "hydra.sweep.subdir", context, configure_logging=False))


def value_of(job: JobReturn) -> Any:
    """What a job returned; what it raised is raised again, without Hydra's own line on stderr: our log says more."""
    with contextlib.redirect_stderr(io.StringIO()):
        return job.return_value


def multirun(hydra: Hydra, config_name: str, task: OfConfig, overrides: Sequence[str]) -> Any:
    """Composes a sweep's common config, and hands over to the sweeper and the launcher that it names."""
    words = [*overrides, "hydra.mode=MULTIRUN"]
    return hydra.multirun(config_name, task, words, with_log_configuration=False)


def show(hydra: Hydra, config_name: str, arguments: Any, parser: Any) -> None:
    """--cfg, --info, --hydra-help and shell completion, by the methods that Hydra's own command line calls; from
    outside it could only be had as a whole, with its own search path and its own form of errors.
    """
    words = arguments.overrides
    if arguments.hydra_help:
        hydra.hydra_help(config_name, parser, arguments)
    elif arguments.cfg:
        hydra.show_cfg(config_name, words, arguments.cfg, arguments.package, arguments.resolve)
    elif arguments.shell_completion:
        hydra.shell_completion(config_name, words)
    else:
        hydra.show_info(arguments.info, config_name, words)
