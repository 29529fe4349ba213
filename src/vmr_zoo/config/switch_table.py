"""A study's table of switches: each row is a set of overrides, and `switch=GROUP/ROW` selects one.

    switches:                                        # experiments/fidelity/switches.yaml
      mesm:
        context: {method.segment_sentence.context: inert}
    switch: full                                     # no row

A run is named after its row as after an ablation, and its header says `ablation: fidelity/mesm/context`.
"""

from __future__ import annotations

from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import ConfigAttributeError, ConfigKeyError

from vmr_zoo.errors import VmrError, unknown

FULL = "full"
"""The name of no row."""


def row_names(*groups: str, _root_: DictConfig) -> str:
    """Resolves `${switch_rows:GROUP,…}`: the rows of these groups as a sweep takes them, `full` first."""
    rows = [f"{group}/{row}" for group in groups for row in _root_.switches[group]]
    return ",".join([FULL, *rows])


def apply_row(cfg: DictConfig) -> None:
    """Applies the selected row in place and removes the table, so that a run stores its own values only.

    Raises:
        VmrError: if the table lacks the row, or the configuration a key of the row.
    """
    if "switches" not in cfg:
        return
    name = cfg.switch
    rows = {f"{group}/{row}": table[row] for group, table in cfg.switches.items() for row in table}
    if name != FULL and name not in rows:
        raise unknown("switch", name, [FULL, *rows])
    for key, value in rows.get(name, {}).items():
        try:
            OmegaConf.update(cfg, key, value)
        except (ConfigKeyError, ConfigAttributeError) as error:
            raise VmrError(f"switch={name} sets '{key}', which this configuration does not have.") from error
    with open_dict(cfg):
        del cfg["switches"], cfg["switch"]
        if name != FULL:
            cfg.choices.ablation = f"fidelity/{name}"
