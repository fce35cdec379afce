"""What every model class can do besides computing: load, save, count, resize."""

from __future__ import annotations

import copy
import os
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from .attention import BACKENDS
from .checks import check_json, check_numbers, checked, one_of, plain, warn_caller
from .config import FIELDS, RANGES, Qwen2Config, parse_dtype
from .layers import RMSNorm

if TYPE_CHECKING:
    from .decoding.settings import GenerationConfig

CONFIG_FIELDS = {*FIELDS, "num_labels", "rope_parameters", "classifier_dropout"}
OPTIONS = """config dtype device device_map attn_implementation verify torch_dtype mmap
 ignore_mismatched_sizes quantize output_loading_info""".split()
# What a forward pass may be given beside ids: the first by place too, all by name.
ORDER = "input_ids attention_mask position_ids past_key_values inputs_embeds labels".split()
TENSORS = (*ORDER[1:3], *ORDER[4:], "start_positions", "end_positions")
KINDS = dict.fromkeys(TENSORS, torch.Tensor | None)
KINDS |= dict.fromkeys(("logits_to_keep", "num_items_in_batch"), int | torch.Tensor | None)
FLAGS = ("use_cache", "output_attentions", "output_hidden_states")
KINDS |= dict.fromkeys(FLAGS, bool | None)


@checked
class Qwen2PreTrainedModel(nn.Module):
    """The base of all model classes."""

    base_model_prefix = "model"  # where a model keeps its trunk; a Qwen2Model is the trunk itself
    fresh_heads: tuple[str, ...] = ()  # a checkpoint may lack these: initialised, with a warning

    def __init__(self, config: Qwen2Config):
        super().__init__()
        config.check()
        self.config = config

    def __call__(self, *inputs: Any, return_dict: bool | None = None, **options: Any) -> Any:
        """As `forward`, which each class describes. `return_dict=False` answers a plain tuple."""
        if not torch.compiler.is_compiling():
            options |= {name: plain(options[name]) for name in FLAGS if name in options}
            check_json({**dict(zip(ORDER, inputs, strict=False)), **options}, KINDS)
        out = super().__call__(*inputs, **options)
        return out.to_tuple() if return_dict is False else out

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        *,
        config: Qwen2Config | None = None,
        dtype: str | torch.dtype | None = "auto",
        device: str | int | torch.device | None = None,
        device_map: str | int | torch.device | dict | None = None,
        attn_implementation: str | None = None,
        verify: bool = False,
        torch_dtype: str | torch.dtype | None = None,
        mmap: bool = True,
        ignore_mismatched_sizes: bool = False,
        quantize: str | None = None,
        output_loading_info: bool = False,
        **options: Any,
    ):
        """A model with the weights of a checkpoint, in eval mode.

        Args:
            pretrained_model_name_or_path: a built-in name, a folder, a GGUF file, or a hub id
                "Qwen/Qwen2-0.5B".
            config: use this instead of the checkpoint's config.json.
            dtype, torch_dtype: of the parameters; "auto" = as config.json says, else as stored.
            device: where the parameters go; None = the CPU.
            device_map: "auto" = the best single device with room for them; or a device.
            attn_implementation: "sdpa" or "eager".
            quantize: "int8" or "int4": keep the weights in fewer bits; see `quantize.quantize`.
            verify: first compare each file with its recorded hash; see `checksums.check_hashes`.
            mmap: where nothing needs to be converted, parameters are the file itself, read when
                first used. Whoever then writes into it (a save puts a new one in its place) changes
                the model, or ends the process if it becomes shorter. False = read all of it now.
            ignore_mismatched_sizes: parts of other shapes are newly initialised, with a warning.
            output_loading_info: answer the model and what `load_weights` says of it.
            **options: revision, token, cache_dir, local_files_only, gguf_file, as in `hub.resolve`;
                and fields of the config to change, such as `num_labels=3`. With fewer
                `num_hidden_layers` than the checkpoint has, the first ones are taken.

        Raises:
            TypeError: an unknown option, or one of transformers that means something else here.
            OSError, ValueError: files missing, malformed or of another model; names the file or
                tensor at fault and the way out. ConnectionError and PermissionError are OSErrors.
            MemoryError: `device_map="auto"` and no device has room.
        """
        from .decoding.settings import GenerationConfig
        from .files.checksums import check_hashes
        from .files.devices import choose_device
        from .files.disk import locked
        from .files.gguf import open_place
        from .files.weights import INDEX, check_layers, find_weights, load_weights
        from .hub import HUB_OPTIONS, drop_neutral, resolve, take_options
        from .quantize import quantize as pack
        from .quantize import shape_like_saved

        drop_neutral("from_pretrained", options, (*OPTIONS, *HUB_OPTIONS), also=CONFIG_FIELDS)
        if torch_dtype is not None and dtype not in ("auto", None, torch_dtype):
            raise TypeError(f"dtype={dtype!r}, torch_dtype={torch_dtype!r}: give one of the two")
        asked_type = parse_dtype(dtype if torch_dtype is None else torch_dtype)
        name = pretrained_model_name_or_path
        folder = resolve(name, "model", **take_options(options))  # or a GGUF file
        if verify and folder.is_file():
            check_hashes(folder.parent, [folder.name])
        elif verify:
            check_hashes(folder, [INDEX, "config.json", "generation_config.json"], required=False)
            check_hashes(folder, [path.name for path in find_weights(folder)])
        if attn_implementation is not None:
            options["attn_implementation"] = attn_implementation

        def load() -> tuple[Qwen2PreTrainedModel, dict[str, Any]]:
            source = open_place(folder)
            if config is None:
                its = Qwen2Config.from_place(source, **options)
            else:
                its = copy.deepcopy(config)
                its.update(options)
            number_type = asked_type or its.dtype
            check_layers(source, its.num_hidden_layers)
            with torch.device("meta"), Undrawn():  # names and shapes only
                model = cls(its)
            if "quantization_config" in its.extra:
                shape_like_saved(model, its.extra["quantization_config"])
            size = model.num_parameters() * (number_type or torch.float32).itemsize
            how = {"dtype": number_type, "device": choose_device(device, device_map, size)}
            how |= {"mmap": mmap, "ignore_mismatched_sizes": ignore_mismatched_sizes}
            info = load_weights(model, source, **how)
            if fresh := info["missing_keys"] | info["mismatched_keys"]:
                warn_caller(
                    f"{name} has no {', '.join(sorted(fresh))}: newly initialised, so train it"
                )
            its.torch_dtype = model.dtype
            if said := GenerationConfig.from_pretrained(folder):
                model.generation_config = said
            if quantize is not None:
                pack(model, quantize, None if source is folder else source)
            return model.eval(), info

        def stamp() -> tuple[int, ...]:
            now = folder.stat()  # ctime: a new folder may bear the number of one that is gone
            return now.st_ino, now.st_mtime_ns, now.st_ctime_ns

        seen, found = stamp(), None
        try:
            found = load()
        except (OSError, ValueError):
            if stamp() == seen:
                raise
        if found is None or stamp() != seen:
            with locked(folder):  # it was saved anew meanwhile: savers wait for the second try
                found = load()
        return found if output_loading_info else found[0]

    @classmethod
    def from_config(
        cls,
        config: Qwen2Config,
        *,
        dtype: str | torch.dtype | None = "auto",
        attn_implementation: str | None = None,
    ):
        """A new model with fresh values, as `cls(config)`; options as in `from_pretrained`."""
        config = copy.deepcopy(config)
        how = {"torch_dtype": parse_dtype(dtype) or config.dtype}
        how["attn_implementation"] = attn_implementation or config.attn_implementation
        config.update(how)
        return cls(config).to(config.dtype)

    def save_pretrained(
        self,
        save_directory: str | os.PathLike[str],
        max_shard_size: int | str = "5GB",
        **options: Any,
    ) -> None:
        """Write config.json and model.safetensors, or shards and their index, as releases do. The
        folder then holds this model or, after a kill at any moment, what it held (`replacing`);
        files of others, such as a tokenizer, stay. OSError: the folder cannot be written.
        """
        from .decoding.settings import GenerationConfig
        from .files.disk import replacing
        from .files.weights import INDEX, OUTDATED, SINGLE, write_weights
        from .hub import drop_neutral

        drop_neutral("save_pretrained", options, ("save_directory", "max_shard_size"))
        config = copy.deepcopy(self.config)
        self._check_shapes(config)
        config.update({"architectures": [type(self).__name__], "torch_dtype": self.dtype})
        texts = {"config.json": config.to_json_string()}
        said = self.generation_config
        said = GenerationConfig.from_dict(said) if isinstance(said, dict) else said
        if said is not None and said.to_dict():
            texts["generation_config.json"] = said.to_json()
        with replacing(save_directory, stale=OUTDATED.fullmatch, last=(SINGLE, INDEX)) as draft:
            for name, text in texts.items():
                (draft / name).write_bytes(text.encode())
            write_weights(self, draft, max_shard_size)

    def _check_shapes(self, config: Qwen2Config) -> None:
        """Refuse a config that was changed to what these weights could not be loaded into."""
        with torch.device("meta"), Undrawn():  # which looks if the config fits together, too
            wanted = dict(type(self)(config).named_parameters())
        for name, parameter in self.named_parameters():
            shape, theirs = tuple(parameter.shape), getattr(wanted.get(name), "shape", None)
            if theirs not in (None, shape) and parameter.is_floating_point():
                what = f"by the config {name} is {tuple(theirs)}, and it is {shape}"
                raise ValueError(f"{what}: it was changed since the model was built; nothing saved")

    # -- generation --------------------------------------------------------------------------------

    @classmethod
    def can_generate(cls) -> bool:
        """Does the class have `generate`?"""
        return hasattr(cls, "generate")

    @cached_property
    def generation_config(self) -> GenerationConfig | None:
        """What `generate` does where a call does not say: of a new model, its special ids. None
        where the class does not generate.
        """
        from .decoding.settings import SPECIAL, GenerationConfig

        said = {name: getattr(self.config, name) for name in SPECIAL}
        return GenerationConfig(**said) if self.can_generate() else None

    def prepare_inputs_for_generation(
        self,
        input_ids: torch.Tensor,
        past_key_values: Any = None,
        attention_mask: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        **others: Any,
    ) -> dict[str, Any]:
        """What `forward` reads next of a text (B, T): what no cache has read. Libraries that wrap a
        model, as peft does, ask for it; `generate` does not.
        """
        read = 0 if past_key_values is None else int(past_key_values.length)
        first = inputs_embeds is not None and read == 0
        rest = {"inputs_embeds": inputs_embeds} if first else {"input_ids": input_ids[:, read:]}
        both = {"past_key_values": past_key_values, "attention_mask": attention_mask}
        return {**rest, **both, **others}

    # -- parts -------------------------------------------------------------------------------------

    @property
    def base_model(self) -> nn.Module:
        """The trunk: the Qwen2Model without a head."""
        return self._modules.get(self.base_model_prefix, self)

    def get_decoder(self) -> nn.Module:
        """The same, as trainers ask for it."""
        return self.base_model

    def get_input_embeddings(self) -> nn.Embedding:
        """The token embedding, weight (V, E)."""
        return self.base_model.embed_tokens

    def set_input_embeddings(self, embeddings: nn.Embedding) -> None:
        """Replace the token embedding; a tied head follows."""
        self.base_model.embed_tokens = embeddings
        self.tie_weights()

    def get_output_embeddings(self) -> nn.Linear | None:
        """The head over the vocabulary, weight (V, E); None where the model has none."""
        return self._modules.get("lm_head")

    def set_output_embeddings(self, head: nn.Linear) -> None:
        """Replace the head over the vocabulary."""
        if "lm_head" not in self._modules:
            raise ValueError(f"{type(self).__name__} has no head over the vocabulary")
        self.lm_head = head

    def tie_weights(self) -> None:
        """Make what is one parameter one tensor. Only Qwen2ForCausalLM has something to tie."""

    @torch.no_grad()
    def resize_token_embeddings(
        self,
        new_num_tokens: int | None = None,
        pad_to_multiple_of: int | None = None,
        mean_resizing: bool = True,
    ) -> nn.Embedding:
        """Add rows at the end of embedding and head, or cut some off; `config` follows.

        Args:
            new_num_tokens: rows there shall be; None = as many as there are.
            pad_to_multiple_of: or so many more that their number is one of this.
            mean_resizing: new rows are the mean of the old ones, so that a new token takes little
                from the others; False = normal(0, initializer_range).

        Source: of the mean, Hewitt, "Initializing new word embeddings for pretrained language
        models", 2021.
        """
        sizes = {"new_num_tokens": new_num_tokens, "pad_to_multiple_of": pad_to_multiple_of}
        check_numbers(sizes, dict.fromkeys(sizes, RANGES["vocab_size"]))
        multiple = pad_to_multiple_of or 1
        rows = -(-(new_num_tokens or self.vocab_size) // multiple) * multiple
        embedding, head = self.get_input_embeddings(), self.get_output_embeddings()
        if not embedding.weight.is_floating_point():
            raise ValueError("a quantised model cannot be resized: resize first, then quantize()")
        tied = head is not None and head.weight is embedding.weight
        embedding.weight = self._resized(embedding.weight, rows, mean_resizing)
        embedding.num_embeddings = rows
        if head is not None:
            old = head.weight
            head.weight = embedding.weight if tied else self._resized(old, rows, mean_resizing)
            head.out_features = rows
        self.config.vocab_size = rows
        return embedding

    def _resized(self, old: nn.Parameter, rows: int, mean_resizing: bool) -> nn.Parameter:
        new = old.new_empty(rows, old.shape[1])
        kept = min(rows, old.shape[0])
        new[:kept] = old[:kept]
        new[kept:].normal_(0.0, self.config.initializer_range)
        if mean_resizing:
            new[kept:] = old.mean(0, dtype=torch.float32)
        return nn.Parameter(new, requires_grad=old.requires_grad)

    # -- starting values and switches --------------------------------------------------------------

    @torch.no_grad()
    def init_weights(self, part: nn.Module | None = None) -> None:
        """Fresh values, of `part` or all: normal(0, initializer_range), biases 0, norms 1."""
        for module in (self if part is None else part).modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                nn.init.normal_(module.weight, 0.0, self.config.initializer_range)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.constant_(module.bias, 0.0)
            if isinstance(module, RMSNorm):
                nn.init.constant_(module.weight, 1.0)

    def activation_checkpointing_enable(
        self,
        activation_checkpointing_kwargs: dict[str, Any] | None = None,
        every_n_layers: int = 1,
        offload: bool = False,
    ) -> None:
        """In training, keep each block's input only and compute the rest anew going back. Options
        are those of torch.utils.checkpoint; `use_reentrant` is False if not said.
        """
        one_of("every_n_layers", every_n_layers, (1,))  # each, on its own device
        one_of("offload", offload, (False,))
        self.base_model.checkpointing_options = dict(activation_checkpointing_kwargs or {})
        self.base_model.gradient_checkpointing = True

    def gradient_checkpointing_enable(
        self, gradient_checkpointing_kwargs: dict[str, Any] | None = None, **options: Any
    ) -> None:
        """The same by its older name."""
        self.activation_checkpointing_enable(gradient_checkpointing_kwargs, **options)

    def enable_input_require_grads(self) -> None:
        """Let gradients reach the embeddings' output even where every weight below is frozen."""
        self.disable_input_require_grads()
        ask = lambda module, inputs, out: out.requires_grad_()  # noqa: E731
        self._input_hook = self.get_input_embeddings().register_forward_hook(ask)

    def disable_input_require_grads(self) -> None:
        """Undo `enable_input_require_grads`."""
        if hook := self.__dict__.pop("_input_hook", None):
            hook.remove()

    def activation_checkpointing_disable(self) -> None:
        """Keep every intermediate result, as usual."""
        self.base_model.gradient_checkpointing = False

    @property
    def is_activation_checkpointing(self) -> bool:
        """Is the way back computed anew?"""
        return self.base_model.gradient_checkpointing

    gradient_checkpointing_disable = activation_checkpointing_disable
    is_gradient_checkpointing = is_activation_checkpointing

    def add_model_tags(self, tags: str | list[str]) -> None:
        """Nothing: trainers tag a model card with them, and none is written here."""

    def set_attn_implementation(self, attn_implementation: str) -> None:
        """Change the attention of every layer to "sdpa" or "eager"; `config` follows."""
        self.config.attn_implementation = attn_implementation
        for layer in self.base_model.layers:
            layer.self_attn.attend = BACKENDS[attn_implementation]

    # -- numbers -----------------------------------------------------------------------------------

    def num_parameters(self, only_trainable: bool = False, exclude_embeddings: bool = False) -> int:
        """How many numbers the model has learned; a tied head counts once, scales do not.
        `exclude_embeddings` leaves out the token embedding and a head tied to it (the figures of
        the releases leave out an untied head too).
        """
        embedding = self.get_input_embeddings().weight
        return sum(
            p.numel() * (2 if p.dtype == torch.uint8 else 1)  # two 4-bit numbers a byte
            for name, p in self.named_parameters()
            if (p.requires_grad or not only_trainable)
            and not (exclude_embeddings and p is embedding)
            and not name.endswith(".scales")
        )

    def get_memory_footprint(self) -> int:
        """Bytes of parameters and buffers; a tied head counts once."""
        return sum(x.nbytes for x in (*self.parameters(), *self.buffers()))

    @property
    def vocab_size(self) -> int:
        """V, the rows of the token embedding."""
        return self.config.vocab_size

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """What the model computes in: that of its parameters, where they are not quantised."""
        return self.base_model.norm.weight.dtype

    def extra_repr(self) -> str:
        dtype = str(self.dtype).removeprefix("torch.")
        return f"{self.num_parameters():,} parameters, {dtype}, on {self.device}"


class Undrawn(TorchFunctionMode):
    """Nothing is initialised within it: on the meta device that takes a second, for an import."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if getattr(function, "__module__", "") == "torch.nn.init":
            return kwargs["tensor"]
        return function(*args, **(kwargs or {}))
