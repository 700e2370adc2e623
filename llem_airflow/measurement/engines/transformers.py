"""Hugging Face transformers: batches, a time per token and sequence from a streamer."""

from __future__ import annotations

import gc
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
import transformers
from transformers.generation.streamers import BaseStreamer

from llem_airflow.measurement.engines.contract import Completion, EngineFacts, Prompt
from llem_airflow.measurement.engines.model_size import model_counts
from llem_airflow.measurement.engines.model_source import TokenizerEncoder, source_facts, source_of
from llem_airflow.measurement.failure import MeasurementError
from llem_airflow.measurement.generation import engine_params, generation, llem_execution
from llem_airflow.protocol.engine_keys import GENERATE_PARAMS
from llem_airflow.protocol.spec import ExperimentSpec

LIBRARIES = (
    "transformers",
    "torch",
    "tokenizers",
    "safetensors",
    "accelerate",
    "huggingface_hub",
    "numpy",
    "bitsandbytes",
    "flash-attn",
    "kernels",
    "triton",
)
EXECUTION_KEYS = frozenset(
    {
        "batch_size",
        "torch_compile",
        "torch_compile_mode",
        "torch_compile_backend",
        "allow_tf32",
        "autocast_enabled",
        "autocast_dtype",
        "chat_template",
    }
)


class TransformersEngine(TokenizerEncoder):
    """``AutoModelForCausalLM.generate`` on the CPU or on GPUs."""

    def __init__(self) -> None:
        self._model: Any = None
        self._execution: dict[str, Any] = {}
        self._settings: dict[str, Any] = {}
        self._sampling: dict[str, Any] = {}
        self._source: dict[str, Any] = {}
        self._fixed_length = True

    def open_context(self) -> bool:
        """Make a CUDA context without a model."""
        if not torch.cuda.is_available():
            return False
        torch.zeros(1, device="cuda")
        torch.cuda.synchronize()
        return True

    def load(self, spec: ExperimentSpec) -> None:
        """Load tokenizer and weights, move them to the device, compile if asked."""
        self._choose(spec)
        given = {key: value for key, value in engine_params(spec).items() if key not in GENERATE_PARAMS}
        source = source_of(spec)
        if self._execution.get("allow_tf32") is not None:
            torch.backends.cuda.matmul.allow_tf32 = bool(self._execution["allow_tf32"])
            torch.backends.cudnn.allow_tf32 = bool(self._execution["allow_tf32"])
        parameters = load_parameters(given, cuda=torch.cuda.is_available())
        # The revision is one of the engine's parameters and a part of the model's name; it is given once.
        parameters.pop("revision", None)
        revision = spec.model.hub_revision
        trust = bool(parameters.get("trust_remote_code", False))
        # Known noise: deprecations inside the libraries say nothing about the experiment.
        warnings.filterwarnings("ignore", category=FutureWarning)
        self._tokenizer = transformers.AutoTokenizer.from_pretrained(
            source, revision=revision, trust_remote_code=trust, padding_side="left"
        )
        if self._tokenizer.pad_token_id is None:
            self._tokenizer.pad_token = self._tokenizer.eos_token or self._tokenizer.unk_token
        model = transformers.AutoModelForCausalLM.from_pretrained(source, revision=revision, **parameters)
        if "device_map" not in parameters and torch.cuda.is_available() and not _is_quantised(model):
            model = model.to("cuda")
        self._model = model.eval()
        self._settings = {key: _plain(value) for key, value in parameters.items()}
        self._source = source_facts(spec)
        self._compile()

    def reset(self, spec: ExperimentSpec) -> None:
        """The next experiment's sampling, batch size and seed; the allocator's and the static cache go."""
        self._choose(spec)
        # A static cache is made as long as the longest before it.
        vars(self._model).pop("_previous_max_cache_length", None)
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _choose(self, spec: ExperimentSpec) -> None:
        self._execution = _execution(spec)
        self._chat_template = bool(self._execution.get("chat_template"))
        chosen = generation(spec)
        transformers.set_seed(chosen.seed)
        given = engine_params(spec)
        ours = {key: given[key] for key in GENERATE_PARAMS if key in given}
        self._sampling, self._fixed_length = generate_parameters({**ours, **chosen.parameters})
        if self._execution.get("torch_compile"):
            # A cache that grows by a token changes every shape at every step, and each change compiles anew.
            self._sampling.setdefault("cache_implementation", "static")

    def batch_size(self) -> int | None:
        """As ``llem_execution.batch_size`` says; one if it does not."""
        return int(self._execution.get("batch_size") or 1)

    def generate(self, batch: Sequence[Prompt], on_step: Callable[[int], None]) -> list[Completion]:
        """One ``generate`` for the whole batch, padded on the left."""
        longest = max(len(prompt.token_ids) for prompt in batch)
        limit = max(prompt.output_tokens for prompt in batch)
        pad = self._tokenizer.pad_token_id or 0
        ids = torch.tensor([[pad] * (longest - len(p.token_ids)) + list(p.token_ids) for p in batch])
        mask = torch.tensor([[0] * (longest - len(p.token_ids)) + [1] * len(p.token_ids) for p in batch])
        streamer = TokenTimes(len(batch), on_step)
        settings = {"max_new_tokens": limit, "pad_token_id": pad, **self._sampling}
        if self._fixed_length:
            settings["min_new_tokens"] = limit
        t_submit_ns = time.monotonic_ns()
        with torch.inference_mode(), self._autocast():
            made = self._model.generate(
                input_ids=ids.to(self._model.device),
                attention_mask=mask.to(self._model.device),
                streamer=streamer,
                **settings,
            )
        streamer.check(getattr(made, "sequences", made), longest)
        default = self._model.generation_config.eos_token_id
        ends = () if self._fixed_length else _end_ids(self._sampling.get("eos_token_id", default))
        # A batch runs until its longest answer is done: what a shorter one's place gives after its end is padding.
        mosts = [prompt.output_tokens if prompt.output_tokens < limit else None for prompt in batch]
        return [
            completion(prompt.index, streamer.column(row)[:most], streamer.times_ns[:most], t_submit_ns, ends)
            for row, (prompt, most) in enumerate(zip(batch, mosts, strict=True))
        ]

    def sync(self) -> None:
        """Wait for the GPUs; nothing to do on a CPU."""
        for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
            torch.cuda.synchronize(index)

    def reset_peaks(self) -> None:
        """Start the allocator's peaks anew."""
        for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
            torch.cuda.reset_peak_memory_stats(index)

    def describe(self) -> EngineFacts:
        """Model, device and what ``from_pretrained`` was given."""
        return EngineFacts(
            version=transformers.__version__,
            model={
                **self._source,
                **model_counts(self._model),
                "architecture": type(self._model).__name__,
                "dtype": str(self._model.dtype).removeprefix("torch."),
                "device": str(self._model.device),
                **_devices(self._model),
                "attention": getattr(self._model.config, "_attn_implementation", None),
            },
            libraries=LIBRARIES,
            settings={
                "engine_params": self._settings,
                "sampling_params": {key: _plain(value) for key, value in self._sampling.items()},
                "fixed_length": self._fixed_length,
                "llem_execution": self._execution,
                "torch_threads": torch.get_num_threads(),
            },
        )

    def memory(self) -> dict[str, int | None]:
        """Peak of the CUDA allocator, summed over GPUs."""
        if not torch.cuda.is_available():
            return {"gpu_peak_bytes": None}
        indices = range(torch.cuda.device_count())
        return {
            "gpu_peak_bytes": sum(torch.cuda.max_memory_allocated(index) for index in indices),
            "gpu_reserved_peak_bytes": sum(torch.cuda.max_memory_reserved(index) for index in indices),
        }

    def close(self) -> None:
        """Drop the model and give its memory back."""
        self._model = None
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _compile(self) -> None:
        if self._execution.get("torch_compile"):
            self._model.forward = torch.compile(
                self._model.forward,
                mode=self._execution.get("torch_compile_mode"),
                backend=self._execution.get("torch_compile_backend") or "inductor",
            )

    def _autocast(self) -> Any:
        dtype = getattr(torch, self._execution.get("autocast_dtype") or "bfloat16")
        enabled = bool(self._execution.get("autocast_enabled"))
        return torch.autocast(self._model.device.type, dtype=dtype, enabled=enabled)


class TokenTimes(BaseStreamer):  # type: ignore[misc]  # transformers is not followed by the type checker
    """Notes when each step's tokens are on the host. The first ``put`` is the prompt and is not a step.

    A step brings one token of every sequence of a batch, or, where drafts are checked (prompt lookup, an assistant),
    one or more tokens of the only sequence, which then share one time.
    """

    def __init__(self, batch_size: int, on_step: Callable[[int], None]) -> None:
        self._batch_size = batch_size
        self._on_step = on_step
        self._prompt_seen = False
        self._columns: list[list[int]] = [[] for _ in range(batch_size)]
        self.times_ns: list[int] = []

    def put(self, value: Any) -> None:
        """One token of every sequence, or several of the only one."""
        now_ns = time.monotonic_ns()
        if not self._prompt_seen:
            self._prompt_seen = True
            return
        tokens = value.reshape(-1).tolist()
        if self._batch_size == 1:
            self._columns[0] += tokens
            self.times_ns += [now_ns] * len(tokens)
        else:
            if len(tokens) != self._batch_size:
                raise _not_one_answer_each(len(tokens), self._batch_size)
            for column, token in zip(self._columns, tokens, strict=True):
                column.append(token)
            self.times_ns.append(now_ns)
        self._on_step(len(self.times_ns) * self._batch_size)

    def end(self) -> None:
        """Called by transformers after the last token."""

    def column(self, row: int) -> list[int]:
        """Tokens of one sequence of the batch."""
        return self._columns[row]

    def check(self, made: Any, prompt_tokens: int) -> None:
        """Compare what was streamed with what the engine returned.

        Args:
            made: The sequences, prompts in front: (sequences, tokens).
            prompt_tokens: Length of the padded prompts.

        Raises:
            MeasurementError: The engine made other sequences than one for each prompt.
            RuntimeError: It made other tokens than it streamed.
        """
        sequences, length = made.shape
        if sequences != self._batch_size:
            raise _not_one_answer_each(sequences, self._batch_size)
        if length - prompt_tokens != len(self.times_ns):
            raise RuntimeError(
                f"transformers made {length - prompt_tokens} tokens a sequence and streamed {len(self.times_ns)}"
            )


def _not_one_answer_each(sequences: int, prompts: int) -> MeasurementError:
    return MeasurementError(
        f"transformers.sampling_params: the engine made {sequences} sequences of {prompts} prompts; one answer a "
        "prompt is measured here: leave num_return_sequences and num_beams at 1",
        category="bad_parameter",
    )


def completion(
    prompt_index: int, tokens: list[int], times_ns: list[int], t_submit_ns: int, ends: Sequence[int]
) -> Completion:
    """One sequence's answer, cut behind its first end token: what follows is padding until the batch is done.

    Args:
        prompt_index: The prompt it answers.
        tokens: One per step.
        times_ns: One per step, in nanoseconds of the monotonic clock.
        t_submit_ns: When the batch was handed over, in nanoseconds of the monotonic clock.
        ends: Ids that end a sequence; empty when lengths are fixed.
    """
    stop = next((place + 1 for place, token in enumerate(tokens) if token in ends), None)
    return Completion(
        prompt_index=prompt_index,
        token_ids=tuple(tokens[:stop]),
        t_submit_mono_ns=t_submit_ns,
        token_mono_ns=tuple(times_ns[:stop]),
        finish_reason="length" if stop is None else "stop",
    )


def load_parameters(given: dict[str, Any], *, cuda: bool) -> dict[str, Any]:
    """Arguments of ``from_pretrained``: the study's, with our defaults and in this version's words.

    Args:
        given: ``engine_params`` of the study.
        cuda: Whether there is a GPU.

    Raises:
        MeasurementError: ``dtype`` names no dtype.
    """
    parameters = {key: value for key, value in given.items() if value is not None}
    dtype = parameters.pop("torch_dtype", None)
    dtype = parameters.pop("dtype", dtype) or ("bfloat16" if cuda else "float32")
    if dtype != "auto":
        found = getattr(torch, str(dtype).removeprefix("torch."), None)
        if not isinstance(found, torch.dtype):
            raise MeasurementError(
                f"transformers.engine_params.dtype: {dtype!r} is not a dtype; "
                "use float32, bfloat16, float16 or auto",
                category="bad_parameter",
            )
        dtype = found
    bits = {
        key: parameters.pop(key)
        for key in list(parameters)
        if key.startswith(("load_in_", "bnb_", "llm_int8_"))
    }
    if bits:
        parameters["quantization_config"] = transformers.BitsAndBytesConfig(**bits)
    return {"dtype": dtype, **parameters}


def generate_parameters(given: dict[str, Any]) -> tuple[dict[str, Any], bool]:
    """Arguments of ``generate``, and whether output lengths are fixed.

    Everything that a model's own generation_config.json could change is written out, so that two engines or
    two versions sample alike.

    Args:
        given: Preset and ``sampling_params`` of the study.
    """
    parameters = {key: value for key, value in given.items() if value is not None}
    temperature = float(parameters.get("temperature", 1.0))
    sampled = bool(parameters.pop("do_sample", temperature > 0)) and temperature > 0
    fixed = parameters.pop("ignore_eos", None) is not False and "min_new_tokens" not in parameters
    neutral: dict[str, Any] = {"temperature": 1.0, "top_p": 1.0, "top_k": 0 if sampled else 50}
    neutral.update(repetition_penalty=1.0, num_beams=1)
    if not sampled:
        for key in ("temperature", "top_p", "top_k", "min_p", "typical_p"):
            parameters.pop(key, None)  # without effect when greedy, and transformers warns about each
    return {"do_sample": sampled, **neutral, **parameters}, fixed


def _execution(spec: ExperimentSpec) -> dict[str, Any]:
    given = {key: value for key, value in llem_execution(spec).items() if value is not None}
    unknown = sorted(set(given) - EXECUTION_KEYS)
    if unknown:
        raise MeasurementError(
            f"transformers.llem_execution.{unknown[0]} is not known; "
            f"known: {', '.join(sorted(EXECUTION_KEYS))}",
            category="bad_parameter",
        )
    return given


def _devices(model: Any) -> dict[str, Any]:
    """Where the weights lie: every device, and the UUIDs of the GPUs among them where torch tells."""
    used = sorted({str(weight.device) for weight in model.parameters()})
    uuids = []
    for index in (torch.device(name).index or 0 for name in used if name.startswith("cuda")):
        uuid = getattr(torch.cuda.get_device_properties(index), "uuid", None)
        uuids.append(None if uuid is None else f"GPU-{uuid}")
    return {"devices": used, "gpu_uuids": uuids if uuids and None not in uuids else None}


def _is_quantised(model: Any) -> bool:
    return getattr(model, "hf_quantizer", None) is not None


def _end_ids(value: Any) -> tuple[int, ...]:
    if value is None:
        return ()
    return tuple(value) if isinstance(value, (list, tuple)) else (int(value),)


def _plain(value: Any) -> Any:
    if isinstance(value, (bool, int, float, str, type(None))):
        return value
    if hasattr(value, "to_dict"):
        return value.to_dict()
    return str(value).removeprefix("torch.")
