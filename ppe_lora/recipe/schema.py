"""The recipe as a frozen tree. A section's docstrings are its documentation; defaults are what we would run."""

from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, Tag, field_validator, model_validator

from ppe_lora.recipe.teachers import LlmTeacher, ScriptedTeacher, Teacher
from ppe_lora.recipe.track import Track
from ppe_lora.section import Conflict, Count, Section, Share, Weight, by_kind, spelled
from ppe_lora.tasks.scores import Language, ScoresTask

Style = Literal["polite", "casual", "short", "long"]
SplitName = Literal["train", "valid", "test"]
ReadOut = Literal["greedy", "posterior_mean", "posterior_median", "calibrated"]
Engine = Literal["vllm", "gguf", "onnx"]
GgufType = Literal["f32", "f16", "bf16", "q8_0", "q6_k", "q5_k_m", "q4_k_m", "q4_0"]

_LETTERS = (
    "letters without accents, digits, `_`, `.` and `-`, a letter or digit first, no `.` last, at most 100, and no "
    "device of Windows (con, nul, com1)"
)
_FOLDER = r"(?!(?i:con|prn|aux|nul|com\d|lpt\d)(?:\.|$))[A-Za-z0-9](?:[A-Za-z0-9_.-]{0,98}[A-Za-z0-9_-])?"
"""Of a run or a data set: a folder of that name can be made everywhere, also with `.lock` and the like behind it."""


# ---------------------------------------------------------------------------------------------------------------- data


class Archetype(Section):
    """A cluster of vectors that players really ask for."""

    center: dict[str, float]
    """One value per key of the task."""
    spread: float = Field(default=10.0, gt=0)
    """Standard deviation around the center, in task units, before clipping to the range."""
    weight: Weight = 1.0


class Observed(Section):
    """A file of vectors from real play; clusters are drawn around them, each as often as it is in the file."""

    path: str
    """CSV with a header, or JSONL, with a column per key of the task, in task units; other columns are ignored."""
    spread: Weight = 5.0
    """Standard deviation around an observed vector, in task units: 0 repeats it."""


class Sampler(Section):
    """Where target vectors come from, mixed by weight. All weights are relative."""

    uniform: Weight = 0.5
    """Evenly over the whole cube of scores, by a scrambled Sobol sequence."""
    clusters: Weight = 0.3
    """Around `archetypes` or `observed` vectors; with neither, around a dozen drawn from the seed."""
    edges: Weight = 0.2
    """Some scores near the ends of the range, the rest uniform."""
    archetypes: dict[str, Archetype] = Field(default_factory=dict)
    observed: Observed | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.uniform + self.clusters + self.edges <= 0:
            weights = ("uniform", "clusters", "edges")
            raise Conflict("at least one of uniform, clusters and edges must be above 0", *weights)
        if self.archetypes and self.observed:
            problem = "clusters are drawn around archetypes or around observed vectors; name one of them"
            raise Conflict(problem, "archetypes", "observed")
        return self


class GenerateSource(Section):
    """Rows made by sampling vectors and letting a teacher phrase them."""

    kind: Literal["generate"] = "generate"
    rows: Count = 1000
    """Requests asked from the teacher, before any filter."""
    sampler: Sampler = Sampler()
    teacher: Teacher = ScriptedTeacher()
    languages: dict[Language, Weight] = Field(default={"ja": 0.5, "en": 0.5}, min_length=1)
    styles: dict[Style, Weight] = Field(default={"polite": 1.0, "casual": 1.0, "short": 1.0, "long": 1.0}, min_length=1)
    context: Share = 0.2
    """Share of rows that carry a context such as the weather."""


def _encoding(name: str) -> str:
    try:
        "".encode(name)  # LookupError for codecs of bytes, such as base64, too
    except LookupError:
        raise ValueError(f"expected a text encoding such as utf-8, cp932 or cp1252; got {name!r}") from None
    return name


class SourceFile(Section):
    """One CSV or JSONL file of an import. The header of a CSV file tells what separates its columns."""

    path: str
    """Relative to `source_dir`."""
    id: str = "id"
    """Its column that joins it to the other files. Ids are compared as they are written. A single file needs none."""
    encoding: Annotated[str, AfterValidator(_encoding)] = "utf-8"
    """What its text is in: utf-8, cp932 (Shift-JIS), utf-16, cp1252, ..."""


class Rescale(Section):
    """The source's own scale, mapped linearly to the task's range and rounded to the task's decimals."""

    low: float
    high: float

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.low >= self.high:
            raise Conflict(f"low must be below high; got low {self.low:g}, high {self.high:g}", "low", "high")
        return self


class ImportSource(Section):
    """Rows read from existing files, joined by id. Columns are named `file.column`."""

    kind: Literal["import"]
    source_dir: str
    """Folder of the files; relative paths start at the working directory."""
    files: dict[str, SourceFile] = Field(min_length=1)
    request: str
    """Column of the request text."""
    target: dict[str, str]
    """Task key to column."""
    rescale: Rescale | None = None
    language: Language = "en"
    """Language of every request."""
    split: str | None = None
    """Column of an official split; without one, rows are split by `data.split`."""
    split_names: dict[str, SplitName] = Field(default={"train": "train", "valid": "valid", "test": "test"})
    """The source's names of its splits."""


class Relabel(Section):
    """Blind re-labelling: a language model reads each text back without its target, and rows far off are rejected. It
    costs one question for each row that all other filters keep."""

    teacher: LlmTeacher | None = Field(default=None, discriminator="kind")
    """Who reads; null is the row teacher, whose budget then holds twice: for the texts, and as much for the readings.
    Unless set here, the temperature is 0: the likeliest reading."""
    k: float = Field(default=6.0, gt=0)
    """A row is far off above median + k * MAD of all rows' squared distances. Lower rejects more: were readings off by
    chance alone, 3 would reject about 7 to 12 % of the rows, 6 under 1 to 3 %, 10 under 1 %."""

    @field_validator("teacher")
    @classmethod
    def _likeliest(cls, teacher: LlmTeacher | None) -> LlmTeacher | None:
        if teacher is None or "temperature" in teacher.model_fields_set:
            return teacher
        return teacher.model_copy(update={"temperature": 0.0})


class Filters(Section):
    """Checks a generated row must pass. Rejected rows are kept with the rule and its evidence."""

    length: dict[Language, tuple[Count, Count]] = Field(default={"en": (12, 600), "ja": (6, 300)})
    """Shortest and longest request in characters."""
    near_duplicate: Share = 0.8
    """Jaccard similarity of character 5-grams from which a later request is dropped as a duplicate."""
    language: bool = True
    """Whether the text must be in the language it is labelled with."""
    relabel: Relabel | None = None
    """Null does not read the texts back."""


class Split(Section):
    """How rows become train, valid and test."""

    valid: Share = 0.1
    """Share of the rows of every language, style and sampler."""
    test: Share = 0.1
    group: Share = 0.6
    """Requests more alike than this (Jaccard, character 5-grams) always share a split."""
    max_rows: dict[SplitName, Count] = Field(default_factory=dict)
    """Keep at most this many rows of a split, chosen by the seed."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.valid + self.test >= 1:
            left = f"valid + test must leave rows to train on; got {self.valid + self.test:g}"
            raise Conflict(left, "valid", "test")
        return self


class Data(Section):
    """From nothing to train, valid and test rows."""

    name: Annotated[str, spelled(rf"(?!.*[A-Z]){_FOLDER}", f"small {_LETTERS}")]
    """Folder under `data/`."""
    source: Annotated[
        Annotated[GenerateSource, Tag("generate")] | Annotated[ImportSource, Tag("import")],
        by_kind(GenerateSource, ImportSource),
    ] = GenerateSource()
    """Generated where no kind is named."""
    filters: Filters = Filters()
    split: Split = Split()
    held_out: ImportSource | None = None
    """Rows written by people for evaluation only: they are the test split, and rows alike to them are dropped from
    the others."""

    @property
    def reader(self) -> LlmTeacher | None:
        """Who reads the texts back: as the recipe says, or the row teacher at temperature 0; None where nobody does."""
        if self.filters.relabel is None or isinstance(self.source, ImportSource):
            return None
        if self.filters.relabel.teacher or isinstance(self.source.teacher, ScriptedTeacher):
            return self.filters.relabel.teacher
        return self.source.teacher.model_copy(update={"temperature": 0.0})

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.filters.relabel and isinstance(self.source, ImportSource):
            problem = "filters.relabel reads generated rows, but data.source is an import; leave it out"
            raise Conflict(problem, "filters.relabel", "source.kind")
        if self.filters.relabel and self.reader is None:
            problem = "filters.relabel needs a language model, and the row teacher is none; name one in "
            raise Conflict(f"{problem}filters.relabel.teacher", "filters.relabel", "source.teacher.kind")
        if self.held_out and self.split.test:
            raise Conflict("held_out rows are the test split; set data.split.test to 0", "split.test", "held_out")
        if self.held_out and self.held_out.split:
            raise Conflict("held_out rows all are test rows; leave data.held_out.split out", "held_out.split")
        if self.held_out and isinstance(self.source, ImportSource) and self.source.split:
            problem = "held_out rows are the test split, but data.source.split names one, too; leave one out"
            raise Conflict(problem, "source.split", "held_out")
        return self


# ------------------------------------------------------------------------------------------------------------- student


class Lora(Section):
    """The adapter. `alpha` stays fixed while `rank` is compared: with the scale alpha/rank the best learning rate
    then hardly moves with rank, so a sweep needs to change one key only."""

    rank: Count = 16
    alpha: float = Field(default=32.0, gt=0)
    targets: Literal["all-linear"] | tuple[str, ...] = "all-linear"
    """Module names, or every linear layer of the text model but the output head."""
    dropout: Share = 0.0
    rslora: bool = False
    """Scale by alpha/sqrt(rank) instead of alpha/rank."""
    dora: bool = False


OnBadRow = Literal["stop", "skip"]


class Student(Section):
    """The model to tune."""

    model: str
    """A local folder, a Hugging Face repository, or the alias `smollm2-135m`."""
    revision: str | None = None
    """Branch, tag or commit of a Hugging Face repository."""
    quantization: Literal["none", "int8", "nf4"] = "none"
    """How the frozen base is held: nf4 needs the least memory, none is the fastest where it fits."""
    dtype: Literal["auto", "bfloat16", "float32"] = "auto"
    """Type of the unquantized weights and of the compute; auto is bfloat16 on a GPU that has it, else float32."""
    max_tokens: Count = 512
    """Longest row in tokens. Longer rows are left out, counted and reported, never cut."""
    on_bad_row: OnBadRow = "stop"
    """What becomes of a row that the model's prompt format cannot express, such as one with a special token in its
    text: stop names all of them before anything is trained; skip leaves them out and counts them."""
    lora: Lora = Lora()


# --------------------------------------------------------------------------------------------------------------- train


class Objective(Section):
    """What training minimizes besides the text's cross-entropy: how far off the numbers are. The formulas are in
    `ppe_lora/student/objective.py`. The defaults are plain SFT."""

    raft: Weight = 0.0
    """Weight of the squared error of each score's mean."""
    crps: Weight = 0.0
    """Weight of the ranked probability score, which keeps the spread honest."""
    legal: Weight = 0.0
    """Weight of the probability that is lost to tokens which cannot go on a number."""
    head: Weight = 0.0
    """Weight of the squared error of the head, `ppe_lora/student/head.py`: fitted to the base model before training, it
    stays as it is while the hidden states that it reads learn."""
    skeleton: Weight = 1.0
    """Weight of the answer's tokens that are no digits: braces, keys, commas, the end."""
    label_smoothing: Share = 0.0
    focal: Weight = 0.0
    """Exponent of focal loss: above 0, tokens that the model already knows count less."""
    slots: Literal["answers", "request"] = "answers"
    """What a score's distribution is conditioned on, in training, evaluation and serving: the request and the answers
    to the keys before it, or the request only. The latter reads all scores in one pass, each as the one key of an
    answer of its own, which raft, crps or legal have to teach: the text's cross-entropy never sees it."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.slots == "request" and not self.reads_numbers:
            problem = "slots: request needs raft, crps or legal above 0: the text alone does not teach it"
            raise Conflict(problem, "slots", "raft", "crps", "legal")
        return self

    @property
    def reads_numbers(self) -> bool:
        """Whether training needs the distributions of the scores."""
        return self.raft > 0 or self.crps > 0 or self.legal > 0


class Train(Section):
    """The optimization. Every default suits LoRA on rows of one or two hundred tokens."""

    objective: Objective = Objective()
    epochs: Count = 3
    learning_rate: float = Field(default=2e-4, gt=0)
    rows_per_step: Count = 16
    """Rows per optimizer step, over all processes: more is steadier, fewer are more steps."""
    rows_per_micro_step: Count | Literal["auto"] = "auto"
    """Rows per forward pass and process: more is faster, fewer need less memory. The result is the same. auto takes as
    many as fit (`fitting_rows` in `ppe_lora/student/estimate.py`); a resumed run keeps its number."""
    warmup: Share = 0.05
    """Share of the steps over which the learning rate rises."""
    schedule: Literal["constant", "linear", "cosine"] = "cosine"
    weight_decay: Weight = 0.0
    max_grad_norm: float = Field(default=1.0, gt=0)
    optimizer: Literal["adamw_torch_fused", "adamw_torch", "paged_adamw_8bit"] = "adamw_torch_fused"
    matmul: Literal["highest", "high", "medium"] = "highest"
    """Precision of float32 products while training, as `torch.set_float32_matmul_precision` has it: high is TF32 on
    GPUs; medium is bfloat16 with float32 sums, faster on CPUs with AMX. Evaluation always uses highest."""
    gradient_checkpointing: bool = False
    """Less memory for half as much compute again; useless for short rows unless memory is very tight."""
    patience: Count | None = None
    """Stop after this many epochs without a better selected metric; null never stops early."""
    checkpoint_minutes: float = Field(default=5.0, gt=0)
    keep_checkpoints: Count = 2

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.learning_rate * self.weight_decay >= 1:
            problem = (
                "learning_rate x weight_decay must be below 1, as each step takes that share of the adapter away; got "
                f"{self.learning_rate:g} x {self.weight_decay:g}"
            )
            raise Conflict(problem, "weight_decay", "learning_rate")
        return self


class Evaluate(Section):
    """Decoding and scoring, after every epoch and at the end."""

    read_out: ReadOut = "greedy"
    """What is served: the decoded text; the mean of each score's exact distribution, which has the smallest expected
    squared error, or its median, the smallest expected absolute error; or that mean after the correction
    that validation rows ask for at the end (`ppe_lora/evaluation/calibration.py`), with the same mean selecting the
    epoch. Every evaluation reports all."""
    head: bool = True
    """Whether the correction may use what ridge regression reads from the student's hidden states
    (`ppe_lora/student/head.py`). Engines other than our own decoder do not give those states."""
    gate: Share = 0.99
    """Lowest json_valid_rate and schema_valid_rate of an epoch that may be selected."""
    batch_rows: Count = 32
    latency_rows: Annotated[int, Field(ge=0)] = 20
    """Rows decoded one at a time for the latency quantiles; 0 leaves them out."""
    latency_limit_ms: Annotated[float, Field(gt=0)] | None = None
    """Longest latency_ms_p95, of the adapter on its base model, that the release checklist passes; null is no limit."""


class Export(Section):
    """Weights for serving: merged, the adapter alone, and smaller ones if wanted."""

    dtype: Literal["auto", "bfloat16", "float32"] = "auto"
    """Type of the merged weights; auto is the type the base model is stored in."""
    verify_rows: Count = 100
    """Validation rows decoded by the reloaded model to prove that it answers as the adapter did."""
    quantize: Literal["none", "int8", "nf4", "gptq"] = "none"
    """Smaller weights beside the merged ones. int8 and nf4, by bitsandbytes, take about half and a third of the size of
    bfloat16. gptq has 4 bits, too; llm-compressor fits them to training rows (`make compress` first), and vLLM loads
    them."""
    max_loss: Weight = 0.05
    """Largest share by which the mse_norm of the served read-out may rise in quantizing, on the validation rows that
    prove the merge; a model that loses more is not kept."""
    engines: tuple[Engine, ...] = ()
    """What serving engines want, each in a folder of its own: start scripts and a client for vLLM, GGUF files for
    llama.cpp and Ollama (their converter: `make llama-cpp`), an ONNX file for Node and the browser."""
    gguf_types: tuple[GgufType, ...] = Field(default=("q8_0", "f16"), min_length=1)
    """Types of GGUF files, the one to serve first: f16 is half of float32's size, q8_0 a quarter, q4_k_m a seventh."""


class Recipe(Section):
    """One experiment: data, student, training, evaluation, export. `name` is the folder under `checkpoints/`."""

    name: Annotated[str, spelled(_FOLDER, _LETTERS)]
    """Taken from the file name when the recipe does not set it."""
    seed: int = 0
    """Fixes sampling, phrasing, split, initial adapter and data order."""
    task: ScoresTask = ScoresTask()
    data: Data
    student: Student
    train: Train = Train()
    evaluate: Evaluate = Evaluate()
    export: Export = Export()
    track: Track = Track()

    @model_validator(mode="after")
    def _check(self) -> Self:
        source = self.data.source
        keys = set(self.task.keys)
        for name, imported in (("source", source), ("held_out", self.data.held_out)):
            if isinstance(imported, ImportSource) and set(imported.target) != keys:
                differing = ", ".join(sorted(set(imported.target) ^ keys))
                problem = f"data.{name}.target must map exactly the task's keys; differing: {differing}"
                raise Conflict(problem, f"data.{name}.target", "task.keys")
        if isinstance(source, GenerateSource):
            for cluster, archetype in source.sampler.archetypes.items():
                try:
                    self.task.check_target(archetype.center)
                except ValueError as error:
                    center = f"data.source.sampler.archetypes.{cluster}.center"
                    raise Conflict(f"{center}: {error}", center) from None
        micro = self.train.rows_per_micro_step
        if micro != "auto" and self.train.rows_per_step % micro:
            raise Conflict(
                f"train.rows_per_step must be a multiple of rows_per_micro_step; "
                f"got {self.train.rows_per_step} and {micro}",
                "train.rows_per_step",
                "train.rows_per_micro_step",
            )
        return self
