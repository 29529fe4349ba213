"""EMB's released code (Raymond-sci/EMB, commit a81e57a): its names, optimiser and golden cases."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from vmr_zoo.blocks.proposal_branch import Proposals
from vmr_zoo.blocks.span_predictor import rank_spans
from vmr_zoo.errors import VmrError
from vmr_zoo.losses.boundary import (
    choose_proposal,
    endpoint_sets,
    highlight_labels,
    proposal_times,
    ranking_targets,
    span_to_indices,
)
from vmr_zoo.methods.base import Method
from vmr_zoo.methods.emb import EMB, Output
from vmr_zoo.parity.case import Case, Number, Released
from vmr_zoo.parity.weights import WeightNames
from vmr_zoo.spans import iou
from vmr_zoo.types import Batch

# The frame branch's stages are f2f, f2w, v2v, the proposals' p2p, p2w, s2s; words are attended on either
# side.
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
    """EMB writes Linear layers as convolutions of width 1, and time x columns as a 2D convolution."""

    @staticmethod
    def restore(name: str, weight: Tensor, like: Tensor) -> Tensor:
        """Brings a weight of ours, by our name, back into the shape of the authors'."""
        if name.endswith("depthwise.weight"):
            weight = weight.transpose(1, 2)
        return weight.reshape(like.shape)

    def keep(self, name: str, weight: Tensor) -> Tensor:
        """Brings an authors' weight into the shape of ours."""
        if name.endswith("depthwise.weight"):
            return weight.squeeze(1).transpose(1, 2)
        while weight.dim() > 2 and weight.shape[-1] == 1:
            weight = weight.squeeze(-1)
        return weight


NAMES = _Names(
    rules=[
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
        r"embedding_net\.word_emb\..*": (
            "words come as features: serve the authors' vectors, which are GloVe 840B as it is "
            "(features/query=glove features.query.file=TABLE.npz features.query.normalise=false); words "
            "that it lacks are skipped, where the authors' code has one trained vector for all of them"
        ),
        r"embedding_net\.char_emb\..*": "the authors' code discards what it computes of the characters",
        r"position\.pe": "it holds sines, not weights",
    },
)


class AdamW(torch.optim.Optimizer):
    """AdamW as transformers 4.11 had it: epsilon before bias correction, weight decay after the step."""

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 5e-4,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.01,
    ) -> None:
        """Keeps the defaults for all groups.

        Args:
            params: parameters or groups.
            lr: learning rate.
            betas: of the running means of gradient and squared gradient.
            eps: added to the root of the squared gradient's mean.
            weight_decay: share of a weight, times the learning rate, that a step takes off.
        """
        # As a configuration gives them, they would make a checkpoint that `weights_only` refuses.
        defaults = {"lr": lr, "betas": tuple(betas), "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Takes one step and returns the closure's loss, if there is a closure."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            weights = [p for p in group["params"] if p.grad is not None]
            if not weights:
                continue
            for weight in weights:
                state = self.state[weight]
                if not state:
                    state["step"] = 0
                    state["mean"], state["square"] = torch.zeros_like(weight), torch.zeros_like(weight)
                state["step"] += 1
            grads = [p.grad for p in weights]
            means = [self.state[p]["mean"] for p in weights]
            squares = [self.state[p]["square"] for p in weights]
            beta1, beta2 = group["betas"]
            torch._foreach_lerp_(means, grads, 1 - beta1)
            torch._foreach_mul_(squares, beta2)
            torch._foreach_addcmul_(squares, grads, grads, 1 - beta2)
            roots = torch._foreach_sqrt(squares)
            torch._foreach_add_(roots, group["eps"])
            sizes = [
                -group["lr"]
                * (1 - beta2 ** self.state[p]["step"]) ** 0.5
                / (1 - beta1 ** self.state[p]["step"])
                for p in weights
            ]
            torch._foreach_addcdiv_(weights, means, roots, sizes)
            if group["weight_decay"]:
                torch._foreach_mul_(weights, 1 - group["lr"] * group["weight_decay"])
        return loss


# What the weights' shapes do not tell; an option that a checkpoint does not name has the recipe's value.
_SETTINGS = {
    "drop_rate": "dropout",
    "num_heads": "branch.heads",
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

# The notes beside the cases: outputs and losses 1e-4, gradients 2e-4, indices and sets exact. After three
# steps of Adam, whose first ones are near the sign of the gradient, an entry may be off by what that
# gradient's noise makes.
_OUTPUT, _GRADIENT, _STEPPED = 1e-4, 2e-4, 2e-5
_UNKNOWN_WORD = "embedding_net.word_emb.unk_vec"


class EMBReleased(Released):
    """EMB."""

    names = NAMES

    def settings(self, options: Mapping[str, Any], weights: Mapping[str, Tensor]) -> dict[str, Any]:
        """See `Released.settings`."""
        for option, only in _ONLY.items():
            if options.get(option, only) != only:
                raise VmrError(
                    f"The authors' option {option} is {options[option]}; vmr_zoo implements {only} only, "
                    "which is what EMB's released code always uses."
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
            "dim": dim,
            "video_dim": video_dim,
            "query_dim": query_dim,
            "branch.guide_kernel": kernel,
            "max_snippets": longest,
        }
        return sizes | {key: options[option] for option, key in _SETTINGS.items() if option in options}

    def data(self, options: Mapping[str, Any]) -> str:
        """See `Released.data`."""
        task = str(options.get("task"))
        if task not in _DATA:
            raise VmrError(
                f"EMB's option 'task' names the data set of a checkpoint; expected {', '.join(_DATA)}, "
                f"found {task}. EMB writes its options beside the checkpoint, in configs.json: put that "
                "file back, or name the data set: data=…"
            )
        return _DATA[task]

    def recompute(self, method: Method, case: Case) -> dict[str, Number]:
        """See `Released.recompute`."""
        assert isinstance(method, EMB)
        assert method.proposals is not None
        unknown_word = nn.Parameter(case[f"param/{_UNKNOWN_WORD}"].clone())
        batch = self._batch(case, unknown_word)
        mask, word_mask = batch["video_mask"], batch["query_mask"]
        frames, tokens = mask.unsqueeze(-1), word_mask.unsqueeze(-1)
        length = mask.sum(1)

        method.train()
        seen: dict[str, tuple[Any, Any]] = {}
        handles = [
            module.register_forward_hook(
                lambda _, given, out, name=name: seen.__setitem__(name, (given, out))
            )
            for name, module in method.named_modules()
        ]
        output, proposals = self._forward(method, batch)
        for handle in handles:
            handle.remove()

        grid = self._grid(proposals)
        present = grid(proposals.mask)
        cells = present.unsqueeze(-1)
        logits = output.located.logits
        start, end = method.curves(output)
        spans, _ = rank_spans(start, end, mask, 1, method.nms_iou)
        indices = (spans[:, 0] * length[:, None]).round().long() - torch.tensor([0, 1])
        seconds = spans[:, 0] * batch["duration"][:, None]
        moment = span_to_indices(batch["spans"][:, 0], mask)
        scores = grid(proposals.logits.sigmoid() * proposals.mask)
        times = proposal_times(proposals.bounds, mask)
        targets = ranking_targets(
            times, batch["spans"][:, 0], method.boundary.rank_low, method.boundary.rank_high
        )
        results = {
            "input/query_mask": Number(word_mask, 0),
            "input/video_mask": Number(
                torch.arange(mask.shape[1]) < case["input/video_lengths"].unsqueeze(1), 0
            ),
            "target/start_index": Number(moment[:, 0], 0),
            "target/end_index": Number(moment[:, 1], 0),
            "target/proposal_time": Number(
                grid(times * batch["duration"][:, None, None] * proposals.mask.unsqueeze(-1)), _OUTPUT
            ),
            "target/rank_target": Number(grid(targets * proposals.mask), _OUTPUT),
            "output/start_logits": Number(logits.start, _OUTPUT),
            "output/end_logits": Number(logits.end, _OUTPUT),
            "output/start_prob": Number(start, _OUTPUT),
            "output/end_prob": Number(end, _OUTPUT),
            "output/highlight": Number(logits.highlight.sigmoid(), _OUTPUT),
            "output/proposal_bounds": Number(grid(proposals.bounds * proposals.mask.unsqueeze(-1)), 0),
            "output/proposal_scores": Number(scores, _OUTPUT),
            "output/proposal_mask": Number(present, 0),
            "output/pred_start_index": Number(indices[:, 0], 0),
            "output/pred_end_index": Number(indices[:, 1], 0),
            "output/pred_start_time": Number(seconds[:, 0], _OUTPUT),
            "output/pred_end_time": Number(seconds[:, 1], _OUTPUT),
            "mid/query_embedding": Number(seen["query_projection"][1], _OUTPUT, where=tokens),
            "mid/video_projection": Number(seen["video_projection"][1], _OUTPUT, where=frames),
            "mid/proposal_features": Number(grid(seen["proposals.exchange.guides.self"][0][2]), _OUTPUT),
            "mid/fuser1_cq_attention": Number(
                seen["branch.predictor.fusion.attention"][1], _OUTPUT, where=frames
            ),
            "mid/fuser1_pooled_query": Number(seen["branch.predictor.fusion.sentence"][1], _OUTPUT),
            "mid/fuser1_output_before_relu": Number(seen["branch.predictor.joint"][1], _OUTPUT, where=frames),
            "mid/fuser1_output": Number(seen["branch.predictor.joint"][1].relu(), _OUTPUT, where=frames),
            "mid/fuser2_output": Number(grid(seen["proposals.joint"][1].relu()), _OUTPUT, where=cells),
            "mid/lstm_start": Number(
                seen["branch.predictor.endpoints.start_linear"][1], _OUTPUT, where=frames
            ),
            "mid/lstm_end": Number(seen["branch.predictor.endpoints.end_linear"][1], _OUTPUT, where=frames),
        }
        for stage, name in _SEQUENCE.items():
            out = seen[name][1]
            proposal_side = ".units." in name and name.startswith("proposals")
            if proposal_side:
                results[f"mid/encoder_{stage}"] = Number(grid(out), _OUTPUT, where=cells)
            else:
                valid = tokens if "word_units" in name else frames
                results[f"mid/encoder_{stage}"] = Number(out, _OUTPUT, where=valid)
            if (guide := name.replace("units", "guides")) in seen and "word_units" not in name:
                columns, guided = seen[guide]
                stacked = torch.stack(columns, -1)
                if proposal_side:
                    results[f"mid/guide_input_{stage}"] = Number(grid(stacked), _OUTPUT)
                else:
                    results[f"mid/guide_input_{stage}"] = Number(stacked, _OUTPUT)
                    results[f"mid/guided_{stage}"] = Number(guided, _OUTPUT, where=frames)

        results |= self._elastic_answer(indices, moment, proposals, mask)
        for threshold in case.options["thresholds"]:
            results |= self._at_threshold(method, output, batch, proposals, moment, threshold)
        return results | self._training(method, case, batch, output, unknown_word)

    @staticmethod
    def _batch(case: Case, unknown_word: Tensor) -> Batch:
        table = torch.cat(
            (
                case["param/embedding_net.word_emb.pad_vec"],
                unknown_word,
                case["param/embedding_net.word_emb.glove_vec"],
            )
        )
        case["input/char_ids"]  # given, and ignored by the authors' network too
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
    def _forward(method: EMB, batch: Batch) -> tuple[Output, Proposals]:
        output = method(batch)
        proposals = method.rank_proposals(output, batch)
        assert proposals is not None
        return output, proposals

    @staticmethod
    def _grid(proposals: Proposals) -> Callable[[Tensor], Tensor]:
        """Returns what lays (B, P, ...) of the cells i <= j out as the authors' N x N cells, others zero."""
        blocks = int(((8 * proposals.mask.shape[1] + 1) ** 0.5 - 1) / 2)
        first, last = torch.triu_indices(blocks, blocks)

        def lay(x: Tensor) -> Tensor:
            out = x.new_zeros(len(x), blocks * blocks, *x.shape[2:])
            out[:, first * blocks + last] = x
            return out

        return lay

    @staticmethod
    def _elastic_answer(
        answer: Tensor, moment: Tensor, proposals: Proposals, mask: Tensor
    ) -> dict[str, Number]:
        """Widens the answer as training widens annotations, by the best proposal, however far away."""
        chosen = choose_proposal(proposals.logits, proposals.bounds, proposals.mask, answer, 0.0)
        starts, ends = endpoint_sets(answer, chosen, mask.shape[1], "one_more")
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
    def _at_threshold(
        method: EMB, output: Output, batch: Batch, proposals: Proposals, moment: Tensor, threshold: float
    ) -> dict[str, Number]:
        boundary, mask = method.boundary, output.mask
        chosen = choose_proposal(proposals.logits, proposals.bounds, proposals.mask, moment, threshold)
        starts, ends = endpoint_sets(moment, chosen, mask.shape[1], boundary.end_set)
        labels = highlight_labels(
            moment, chosen, mask, boundary.highlight_end, boundary.end_set, boundary.extension
        )
        losses = method.losses_of(output, batch, threshold)
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

    def _training(
        self, method: EMB, case: Case, batch: Batch, output: Output, unknown_word: nn.Parameter
    ) -> dict[str, Number]:
        """Gradients, and three steps on the same batch; the vector of unknown words is trained along."""
        options = case.options
        parameters = dict(method.named_parameters())
        optimizer = method.build_optimizer()
        optimizer.add_param_group({"params": [unknown_word]})
        schedule = method.linear_decay(optimizer, options["num_train_steps"])
        everything = [*parameters.values(), unknown_word]

        results: dict[str, Number] = {}
        totals, rates = [], []
        for step in range(4):
            current = output if step == 0 else self._forward(method, self._batch(case, unknown_word))[0]
            losses = method.losses_of(current, batch, options["main_threshold"])
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
                results |= self._weights(
                    case, "grad", {n: p.grad for n, p in parameters.items()}, unknown_word.grad, _GRADIENT
                )
            norm = nn.utils.clip_grad_norm_(everything, options["clip_norm"])
            if step == 0:
                results["output/grad_norm"] = Number(norm, _GRADIENT)
            rates.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            schedule.step()
        results["loss/total_before_step_0_1_2_and_after"] = Number(torch.stack(totals), _OUTPUT)
        results["output/lr_used"] = Number(torch.tensor(rates), 1e-9)
        return results | self._weights(
            case, "after3", {n: p.detach() for n, p in parameters.items()}, unknown_word.detach(), _STEPPED
        )

    def _weights(
        self,
        case: Case,
        prefix: str,
        ours: Mapping[str, Tensor | None],
        unknown_word: Tensor | None,
        tolerance: float,
    ) -> dict[str, Number]:
        results = {}
        for key in case.keys:
            if not key.startswith(f"{prefix}/"):
                continue
            name = key.removeprefix(f"{prefix}/")
            if name == _UNKNOWN_WORD:
                value = unknown_word
            elif (own := self.names.ours(name)) is None:
                # Weights that are never used have no gradient, and no step moves them.
                value = case[f"param/{name}"] if prefix == "after3" else None
            else:
                found = ours[own]
                value = None if found is None else _Names.restore(own, found, case.stored(key))
            if value is not None:
                results[key] = Number(value.clone(), tolerance)
        return results
