"""Adapter of EMB's released code (Raymond-sci/EMB, commit a81e57a): names, options and golden cases."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from vmr_zoo.blocks.span_predictor import Proposals, span_to_indices
from vmr_zoo.errors import VmrError
from vmr_zoo.methods.base import Method
from vmr_zoo.methods.emb import EMB, EMBOutput, choose_proposal
from vmr_zoo.parity.case import Case, Number, Released
from vmr_zoo.parity.weights import WeightNames
from vmr_zoo.spans import iou
from vmr_zoo.types import Batch

# Attention stages: the frames' are f2f, f2w, v2v, the proposals' p2p, p2w, s2s; the others are the words'.
_SEQUENCE = {
    "f2f": "branch.exchange.units.self",
    "f2w": "branch.exchange.units.cross",
    "v2v": "branch.exchange.units.final",
    "w2w": "branch.exchange.word_units.self",
    "w2f": "branch.exchange.word_units.cross",
    "vq2q": "branch.exchange.word_units.final",
    "p2p": "proposals.exchange.units.self",
    "p2w": "proposals.exchange.units.cross",
    "s2s": "proposals.exchange.units.final",
    "w2p": "proposals.exchange.word_units.cross",
    "pq2q": "proposals.exchange.word_units.final",
}
_ENCODER = rf"encoder\.({'|'.join(_SEQUENCE)})\.layers\.0\."
_FUSER = {"1": "branch.predictor.fusion", "2": "proposals.fusion"}
_JOINT = {"1": "branch.predictor.joint", "2": "proposals.joint"}
_SIMILARITY = {"w4C": "w1", "w4Q": "w2", "w4mlu": "w3"}
_GUIDE = {"conv_layers.0": "depthwise", "conv_layers.1": "pointwise", "layer_norm": "norm"}


def _guide(match: re.Match[str]) -> str:
    return f"{_SEQUENCE[match[1]].replace('units', 'guides')}.{_GUIDE[match[2]]}.{match[3]}"


def _lstm(match: re.Match[str]) -> str:
    direction = "back" if match[3] else "forth"
    return f"branch.predictor.endpoints.{match[1]}_lstm.{direction}.{match[2]}"


class _Names(WeightNames):
    """EMB implements Linear layers as convolutions of width 1, and time x columns as a 2D convolution."""

    @staticmethod
    def restore(name: str, weight: Tensor, like: Tensor) -> Tensor:
        """Reshapes one of our weights, by our name, to the authors' shape."""
        if name.endswith("depthwise.weight"):
            weight = weight.transpose(1, 2)
        return weight.reshape(like.shape)

    def keep(self, name: str, weight: Tensor) -> Tensor:
        """Reshapes one of the authors' weights to our shape; `name` is our name."""
        if name.endswith("depthwise.weight"):
            return weight.squeeze(1).transpose(1, 2)
        while weight.dim() > 2 and weight.shape[-1] == 1:
            weight = weight.squeeze(-1)
        return weight


NAMES = _Names(
    rules=[
        (r"embedding_net\.word_emb\.unk_vec", "unknown_word.vector"),
        (r"embedding_net\.linear\.conv1d\.(.*)", r"query_projection.1.\1"),
        (r"video_affine\.linear\.conv1d\.(.*)", r"video_projection.1.\1"),
        (
            _ENCODER + r"attention\.(query|key|value)\.conv1d\.(.*)",
            lambda m: f"{_SEQUENCE[m[1]]}.attention.{m[2]}.{m[3]}",
        ),
        (_ENCODER + r"dense\.(\d)\.conv1d\.(.*)", lambda m: f"{_SEQUENCE[m[1]]}.feed_forward.{m[2]}.{m[3]}"),
        (_ENCODER + r"(norm[12])\.(.*)", lambda m: f"{_SEQUENCE[m[1]]}.{m[2]}.{m[3]}"),
        (_ENCODER + r"guide\.(conv_layers\.[01]|layer_norm)\.(.*)", _guide),
        (r"fuser([12])\.cq_attention\.(w4\w+)", lambda m: f"{_FUSER[m[1]]}.attention.{_SIMILARITY[m[2]]}"),
        (
            r"fuser([12])\.cq_attention\.cqa_linear\.conv1d\.(.*)",
            lambda m: f"{_FUSER[m[1]]}.attention.output.{m[2]}",
        ),
        (r"fuser([12])\.cq_concat\.weighted_pool\.(.*)", lambda m: f"{_FUSER[m[1]]}.sentence.{m[2]}"),
        (r"fuser([12])\.cq_concat\.conv1d\.conv1d\.(.*)", lambda m: f"{_JOINT[m[1]]}.{m[2]}"),
        (r"highlight_layer\.conv1d\.conv1d\.(.*)", r"branch.predictor.highlight.\1"),
        (r"predictor\.(start|end)_encoder\.rnn\.(.*?)(_reverse)?", _lstm),
        (
            r"predictor\.(start|end)_encoder\.dense_output\.conv1d\.(.*)",
            r"branch.predictor.endpoints.\1_linear.\2",
        ),
        (r"predictor\.(start|end)_block\.(\d)\.conv1d\.(.*)", r"branch.predictor.endpoints.\1_output.\2.\3"),
        (r"ranker\.encoders\.0\.(.*)", r"proposals.neighbours.\1"),
        (r"ranker\.predictor\.(.*)", r"proposals.output.\1"),
    ],
    unused={
        r"embedding_net\.word_emb\.(pad|glove)_vec": (
            "words are features here: use the authors' vectors, unmodified GloVe 840B "
            "(features/query=glove features.query.file=TABLE.npz features.query.name=glove_840b_300d)"
        ),
        r"embedding_net\.char_emb\..*": "the authors' code discards the output of its character CNN",
        r"position\.pe": "it contains sines, not weights",
    },
)


# Options that the weights' shapes do not determine; an absent option keeps the recipe's value.
_SETTINGS = {
    "drop_rate": "network.dropout",
    "num_heads": "network.heads",
    "proposal_downscale": "proposals.block",
    "min_iou": "boundary.rank_low",
    "max_iou": "boundary.rank_high",
    "extend": "boundary.extension",
    "highlight_lambda": "training.loss_weights.highlight",
    "rank_lambda": "training.loss_weights.ranking",
    "init_lr": "training.optimizer.lr",
}
_ONLY = {
    "num_layers": 1,
    "kernel_size_bound_guide": 1,
    "ranker_kernel": 3,
    "ranker_layers": 1,
    "lstm_bidirectional": True,
    "lstm_layers": 1,
    "warmup_proportion": 0.0,
}
_DATA = {"charades": "charades_sta", "activitynet": "activitynet", "tacos": "tacos"}

# From the notes beside the cases: outputs and losses 1e-4, gradients 2e-4, indices and sets exact. The first
# steps of Adam are near the sign of the gradient, so its noise may move a weight: 2e-5 after three steps.
_OUTPUT, _GRADIENT, _STEPPED = 1e-4, 2e-4, 2e-5


class _Run(NamedTuple):
    """One forward pass on a case.

    Attributes:
        batch: the inputs.
        output: of the network.
        proposals: scored.
        modules: arguments and output of every module, by name.
        grid: rearranges (B, P, ...) of the cells i <= j to the authors' N x N cells, others zero.
    """

    batch: Batch
    output: EMBOutput
    proposals: Proposals
    modules: dict[str, tuple[Any, Any]]
    grid: Callable[[Tensor], Tensor]


class EMBReleased(Released):
    """EMB."""

    names = NAMES

    def settings(self, options: Mapping[str, Any], weights: Mapping[str, Tensor]) -> dict[str, Any]:
        """Derives settings from the authors' options and the shapes of their weights."""
        for option, only in _ONLY.items():
            if options.get(option, only) != only:
                raise VmrError(
                    f"The authors' option {option} is {options[option]}, but vmr_zoo implements only {only}, "
                    "the value that EMB's released code always uses."
                )
        shapes = {name: tuple(weight.shape) for name, weight in weights.items()}
        try:
            dim, video_dim, _ = shapes["video_affine.linear.conv1d.weight"]
            _, query_dim, _ = shapes["embedding_net.linear.conv1d.weight"]
            _, _, kernel, _ = shapes["encoder.f2f.layers.0.guide.conv_layers.0.weight"]
            longest, _ = shapes["position.pe"]
        except (KeyError, ValueError) as error:
            raise VmrError(f"These are not the weights of EMB's released network: {error}.") from error
        sizes = {
            "network.dim": dim,
            "video_dim": video_dim,
            "query_dim": query_dim,
            "branch.guide_kernel": kernel,
            "snippets.max_snippets": longest,
        }
        return sizes | {key: options[option] for option, key in _SETTINGS.items() if option in options}

    def data(self, options: Mapping[str, Any]) -> str:
        """Returns the data set that a checkpoint was trained on."""
        task = str(options.get("task"))
        if task not in _DATA:
            raise VmrError(
                f"EMB's option 'task' is the data set of a checkpoint: expected {', '.join(_DATA)}, found "
                f"{task}. EMB writes its options to configs.json beside the checkpoint: restore that file or "
                "set the data set, data=…"
            )
        return _DATA[task]

    def recompute(self, method: Method, case: Case) -> dict[str, Number]:
        """Recomputes a case."""
        assert isinstance(method, EMB)
        run = self._run(method, self._batch(case))
        moment = span_to_indices(run.batch["spans"][:, 0], run.output.mask)
        results = (
            self._inputs_and_targets(method, case, run, moment)
            | self._outputs(method, run, moment)
            | self._intermediates(run)
            | self._attention_stages(run)
        )
        for threshold in case.options["thresholds"]:
            results |= self._at_threshold(method, run, moment, threshold)
        return results | self._training(method, case, run)

    @classmethod
    def _run(cls, method: EMB, batch: Batch) -> _Run:
        method.train()
        modules: dict[str, tuple[Any, Any]] = {}
        handles = [
            module.register_forward_hook(
                lambda _, given, out, name=name: modules.__setitem__(name, (given, out))
            )
            for name, module in method.named_modules()
        ]
        output = method(batch)
        proposals = method.score_proposals(output, batch)
        assert proposals is not None
        for handle in handles:
            handle.remove()
        return _Run(batch, output, proposals, modules, cls._grid(proposals))

    @staticmethod
    def _inputs_and_targets(method: EMB, case: Case, run: _Run, moment: Tensor) -> dict[str, Number]:
        batch, mask, proposals = run.batch, run.output.mask, run.proposals
        times = proposals.times(mask)
        targets = method.boundary.ranking_targets(times, batch["spans"][:, 0])
        seconds = times * batch["duration"][:, None, None] * proposals.mask.unsqueeze(-1)
        video_mask = torch.arange(mask.shape[1]) < case["input/video_lengths"].unsqueeze(1)
        return {
            "input/query_mask": Number(batch["query_mask"], 0),
            "input/video_mask": Number(video_mask, 0),
            "target/start_index": Number(moment[:, 0], 0),
            "target/end_index": Number(moment[:, 1], 0),
            "target/proposal_time": Number(run.grid(seconds), _OUTPUT),
            "target/rank_target": Number(run.grid(targets * proposals.mask), _OUTPUT),
        }

    @classmethod
    def _outputs(cls, method: EMB, run: _Run, moment: Tensor) -> dict[str, Number]:
        mask, proposals, grid = run.output.mask, run.proposals, run.grid
        logits = run.output.video.logits
        start, end = method.endpoint_probabilities(run.output)
        spans, _ = replace(method.ranking, answers=1)(start, end, mask)
        indices = (spans[:, 0] * mask.sum(1)[:, None]).round().long() - torch.tensor([0, 1])
        seconds = spans[:, 0] * run.batch["duration"][:, None]
        return {
            "output/start_logits": Number(logits.start, _OUTPUT),
            "output/end_logits": Number(logits.end, _OUTPUT),
            "output/start_prob": Number(start, _OUTPUT),
            "output/end_prob": Number(end, _OUTPUT),
            "output/highlight": Number(logits.highlight.sigmoid(), _OUTPUT),
            "output/proposal_bounds": Number(grid(proposals.bounds * proposals.mask.unsqueeze(-1)), 0),
            "output/proposal_scores": Number(grid(proposals.logits.sigmoid() * proposals.mask), _OUTPUT),
            "output/proposal_mask": Number(grid(proposals.mask), 0),
            "output/pred_start_index": Number(indices[:, 0], 0),
            "output/pred_end_index": Number(indices[:, 1], 0),
            "output/pred_start_time": Number(seconds[:, 0], _OUTPUT),
            "output/pred_end_time": Number(seconds[:, 1], _OUTPUT),
        } | cls._elastic_answer(method, run, indices, moment)

    @staticmethod
    def _intermediates(run: _Run) -> dict[str, Number]:
        frames, tokens = run.output.mask.unsqueeze(-1), run.batch["query_mask"].unsqueeze(-1)
        cells = run.grid(run.proposals.mask).unsqueeze(-1)
        of_frames = {
            "mid/video_projection": "video_projection",
            "mid/fuser1_cq_attention": "branch.predictor.fusion.attention",
            "mid/fuser1_output_before_relu": "branch.predictor.joint",
            "mid/lstm_start": "branch.predictor.endpoints.start_linear",
            "mid/lstm_end": "branch.predictor.endpoints.end_linear",
        }
        results = {
            key: Number(run.modules[name][1], _OUTPUT, where=frames) for key, name in of_frames.items()
        }
        joint, proposal_joint = (run.modules[name][1] for name in _JOINT.values())
        features = run.modules["proposals.exchange.guides.self"][0][2]
        return results | {
            "mid/query_embedding": Number(run.modules["query_projection"][1], _OUTPUT, where=tokens),
            "mid/proposal_features": Number(run.grid(features), _OUTPUT),
            "mid/fuser1_pooled_query": Number(run.modules["branch.predictor.fusion.sentence"][1], _OUTPUT),
            "mid/fuser1_output": Number(joint.relu(), _OUTPUT, where=frames),
            "mid/fuser2_output": Number(run.grid(proposal_joint.relu()), _OUTPUT, where=cells),
        }

    @staticmethod
    def _attention_stages(run: _Run) -> dict[str, Number]:
        frames, tokens = run.output.mask.unsqueeze(-1), run.batch["query_mask"].unsqueeze(-1)
        cells = run.grid(run.proposals.mask).unsqueeze(-1)
        results = {}
        for stage, name in _SEQUENCE.items():
            output = run.modules[name][1]
            if "word_units" in name:
                results[f"mid/encoder_{stage}"] = Number(output, _OUTPUT, where=tokens)
                continue
            columns, guided = run.modules[name.replace("units", "guides")]
            stacked = torch.stack(columns, -1)
            if name.startswith("proposals"):
                results[f"mid/encoder_{stage}"] = Number(run.grid(output), _OUTPUT, where=cells)
                results[f"mid/guide_input_{stage}"] = Number(run.grid(stacked), _OUTPUT)
            else:
                results[f"mid/encoder_{stage}"] = Number(output, _OUTPUT, where=frames)
                results[f"mid/guide_input_{stage}"] = Number(stacked, _OUTPUT)
                results[f"mid/guided_{stage}"] = Number(guided, _OUTPUT, where=frames)
        return results

    @staticmethod
    def _batch(case: Case) -> Batch:
        pad = case["param/embedding_net.word_emb.pad_vec"]
        table = torch.cat((pad, torch.zeros_like(pad), case["param/embedding_net.word_emb.glove_vec"]))
        case["input/char_ids"]  # an input that the authors' network ignores too
        words, duration = case["input/word_ids"], case["input/durations"]
        spans = (case["target/moments_time"] / duration.unsqueeze(1)).unsqueeze(1)
        video = case["input/video_features"]
        lengths = case["input/video_lengths"]
        return {
            "video": video,
            "video_mask": torch.arange(video.shape[1]) < lengths.unsqueeze(1),
            "query": table[words],
            "query_mask": words != 0,
            "spans": spans,
            "span_mask": torch.ones(spans.shape[:2], dtype=torch.bool),
            "duration": duration,
            "video_id": [str(row) for row in range(len(duration))],
        }

    @staticmethod
    def _grid(proposals: Proposals) -> Callable[[Tensor], Tensor]:
        blocks = int(((8 * proposals.mask.shape[1] + 1) ** 0.5 - 1) / 2)
        first, last = torch.triu_indices(blocks, blocks)

        def rearrange(x: Tensor) -> Tensor:
            out = x.new_zeros(len(x), blocks * blocks, *x.shape[2:])
            out[:, first * blocks + last] = x
            return out

        return rearrange

    @staticmethod
    def _elastic_answer(method: EMB, run: _Run, answer: Tensor, moment: Tensor) -> dict[str, Number]:
        """Widens the answer as training widens annotations, by the best proposal at any distance."""
        mask = run.output.mask
        chosen = choose_proposal(run.proposals, answer, 0.0)
        starts, ends = method.boundary.endpoint_sets(answer, chosen, mask.shape[1])
        index = torch.arange(mask.shape[1])
        first, last = index.unsqueeze(1), index
        cells = torch.stack(torch.broadcast_tensors(first, last + 1), -1).float()
        overlap = iou(cells, (moment + torch.tensor([0, 1]))[:, None, None].float())
        eligible = starts.unsqueeze(2) & ends.unsqueeze(1) & (first <= last)
        best = overlap.masked_fill(~eligible, -1.0).flatten(1).argmax(1)
        return {
            "output/elastic_start_set": Number(starts, 0),
            "output/elastic_end_set": Number(ends, 0),
            "output/elastic_oracle_start_index": Number(best // len(index), 0),
            "output/elastic_oracle_end_index": Number(best % len(index), 0),
        }

    @staticmethod
    def _at_threshold(method: EMB, run: _Run, moment: Tensor, threshold: float) -> dict[str, Number]:
        boundary, mask = method.boundary, run.output.mask
        chosen = choose_proposal(run.proposals, moment, threshold)
        starts, ends = boundary.endpoint_sets(moment, chosen, mask.shape[1])
        labels = boundary.highlight_labels(moment, chosen, mask)
        losses = method.losses_of(run.output, run.batch, threshold)
        tag = f"@thr{threshold:.2f}"
        return {
            f"output/pseudo_bound_exclusive_end{tag}": Number(chosen + torch.tensor([0, 1]), 0),
            f"output/start_set{tag}": Number(starts, 0),
            f"output/end_set{tag}": Number(ends, 0),
            f"output/highlight_label{tag}": Number(labels, 0),
            f"loss/loc{tag}": Number(losses["endpoint"], _OUTPUT),
            f"loss/highlight{tag}": Number(losses["highlight"], _OUTPUT),
            f"loss/total{tag}": Number(method.total_loss(losses), _OUTPUT),
        }

    def _training(self, method: EMB, case: Case, run: _Run) -> dict[str, Number]:
        """Computes gradients and takes three steps on the batch."""
        options = case.options
        parameters = dict(method.named_parameters())
        optimizer = method.build_optimizer()
        schedule = method.linear_decay(optimizer, options["num_train_steps"])

        results: dict[str, Number] = {}
        totals, rates = [], []
        for step in range(4):
            current = run.output if step == 0 else method(self._batch(case))
            losses = method.losses_of(current, run.batch, options["main_threshold"])
            total = method.total_loss(losses)
            totals.append(total.detach())
            if step == 3:
                break
            optimizer.zero_grad()
            total.backward()
            if step == 0:
                results |= {
                    f"loss/{theirs}": Number(losses[ours].detach(), _OUTPUT)
                    for theirs, ours in (("loc", "endpoint"), ("highlight", "highlight"), ("rank", "ranking"))
                }
                results["loss/total"] = Number(total.detach(), _OUTPUT)
                results |= self._weights(case, "grad", {n: p.grad for n, p in parameters.items()}, _GRADIENT)
            norm = nn.utils.clip_grad_norm_(parameters.values(), options["clip_norm"])
            if step == 0:
                results["output/grad_norm"] = Number(norm, _GRADIENT)
            rates.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            schedule.step()
        results["loss/total_before_step_0_1_2_and_after"] = Number(torch.stack(totals), _OUTPUT)
        results["output/lr_used"] = Number(torch.tensor(rates), 1e-9)
        return results | self._weights(
            case, "after3", {n: p.detach() for n, p in parameters.items()}, _STEPPED
        )

    def _weights(
        self,
        case: Case,
        prefix: str,
        ours: Mapping[str, Tensor | None],
        tolerance: float,
    ) -> dict[str, Number]:
        results = {}
        for key in case.keys:
            if not key.startswith(f"{prefix}/"):
                continue
            name = key.removeprefix(f"{prefix}/")
            if (own := self.names.ours(name)) is None:
                # Unused weights have no gradient and stay.
                value = case[f"param/{name}"] if prefix == "after3" else None
            else:
                found = ours[own]
                value = None if found is None else _Names.restore(own, found, case.stored(key))
            if value is not None:
                results[key] = Number(value.clone(), tolerance)
        return results
