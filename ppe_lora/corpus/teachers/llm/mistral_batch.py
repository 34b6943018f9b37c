"""The Mistral batch API: half the price, outside the real-time rate limits, results within hours.

A folder holds everything a batch needs to survive its process: the request files, the jobs they became, and the
results as they were downloaded.
"""

import asyncio
import uuid
from collections.abc import Iterable
from pathlib import Path

from mistralai.client.models import BatchJob
from pydantic import TypeAdapter, ValidationError
from tenacity import (
    AsyncRetrying,
    RetryCallState,
    retry_if_exception_type,
    stop_after_attempt,
    wait_exponential_jitter,
)
from tenacity.wait import wait_base

from ppe_lora.artifacts import write_text
from ppe_lora.console import progress
from ppe_lora.corpus.teachers.llm.batch import BatchAnswers, batch_keys, read_batch_results, write_batch_files
from ppe_lora.corpus.teachers.llm.exchange import Question, Refused, Throttled, Unavailable
from ppe_lora.corpus.teachers.llm.mistral import mistral_attempt, mistral_client
from ppe_lora.errors import DataError
from ppe_lora.section import Section

# Any other status means that the job goes on, a new one of Mistral's too: asking again would be paid again.
_ENDED = {"SUCCESS", "FAILED", "TIMEOUT_EXCEEDED", "CANCELLED"}
_TAG = "ppe_lora_batch"
_PAGE = 100
_ATTEMPTS = 8
_LARGEST_RESULTS = 2_000_000_000
"""Bytes of a file of results: a hundred thousand answers of 20 kB, thoughts included."""


class _Job(Section):
    """One request file and what became of it."""

    requests: str
    """File name in the folder."""
    model: str
    tag: str
    """Sent as the job's metadata: finds a job whose creation was not heard of."""
    job: str | None = None
    status: str | None = None
    """Set once the job has ended and its results are on disk."""
    results: tuple[str, ...] = ()
    errors: str = ""


_JOBS = TypeAdapter(list[_Job])


class MistralBatch:
    """Asks questions by batch jobs, and picks up the jobs of a process that was killed.

    Args:
        folder: Where requests, jobs and results are kept; one process at a time.
        server_url: Another address than `https://api.mistral.ai`, without `/v1`.
        poll_s: Seconds between looks at the jobs.
        timeout_hours: After this time Mistral ends a job; what is done by then is delivered.
        timeout_s: Longest time of one upload or download.

    Raises:
        Refused: The environment has no `MISTRAL_API_KEY`.
        NetworkError: As `MistralEndpoint`.
    """

    def __init__(
        self,
        folder: Path,
        *,
        server_url: str | None = None,
        poll_s: float = 30.0,
        timeout_hours: int = 24,
        timeout_s: float = 900.0,
    ) -> None:
        self._folder = folder
        self._state = folder / "jobs.json"
        self._client, self._http = mistral_client(server_url, timeout_s, largest_bytes=_LARGEST_RESULTS)
        self._poll_s, self._timeout_hours, self._timeout_s = poll_s, timeout_hours, timeout_s
        self._perhaps_made: set[str] = set()
        self._patient = AsyncRetrying(
            retry=retry_if_exception_type((Throttled, Unavailable)),
            wait=_Pause(min(1.0, poll_s)),
            stop=stop_after_attempt(_ATTEMPTS),
            reraise=True,
        )

    async def ask(self, questions: Iterable[Question]) -> BatchAnswers:
        """Replies to the questions, once every job has ended.

        A question whose reply lies in the folder is not asked, nor one that a running job holds: its results are
        waited for. The others are uploaded. Questions that stay unanswered are asked in a new job by the next call.

        Raises:
            Refused: Mistral does not take the key or a request file, or a job failed as a whole.
            Throttled, Unavailable: It could not be reached in several attempts; call again with the same folder.
            DataError: The folder's list of jobs is broken.
        """
        questions = list(questions)
        jobs = self._read()
        in_flight = {key for job in jobs if job.status is None for key in self._keys(job)}
        to_ask = self._answers(jobs, questions).unanswered.keys() - in_flight
        files = write_batch_files((one for one in questions if one.key in to_ask), self._folder, "mistral")
        jobs += [_Job(requests=path.name, model=model, tag=uuid.uuid4().hex) for path, model, _ in files]
        self._write(jobs)  # before any of them exists at Mistral: its tag finds what a killed process left behind
        running = [index for index, job in enumerate(jobs) if job.status is None]
        await self._start_all(jobs)
        await self._wait(jobs, running)
        failed = [jobs[index] for index in running if jobs[index].status == "FAILED"]
        if failed:
            named = "; ".join(f"{job.job} ({job.requests}): {job.errors or 'no reason'}" for job in failed)
            raise Refused(f"mistral: expected batch jobs that succeed; got FAILED for {named}; mend it, and ask again")
        return self._answers(jobs, questions)

    async def close(self) -> None:
        """Give connections back; jobs go on at Mistral."""
        await self._http.aclose()

    async def _start_all(self, jobs: list[_Job]) -> None:
        for index, job in enumerate(jobs):
            if job.status is None and job.job is None:
                try:
                    job_id: str = await self._patient(self._start, job)
                except Refused as error:
                    if job.tag not in self._perhaps_made:  # else the next call would insist on this file
                        jobs[index] = job.model_copy(update={"status": "FAILED", "errors": str(error)})
                        self._write(jobs)
                    raise
                jobs[index] = job.model_copy(update={"job": job_id})
                self._write(jobs)

    async def _start(self, job: _Job) -> str:
        """Id of the job that carries the tag: one that an attempt of before has made, or a new one."""
        if job.tag in self._perhaps_made and (found := await self._find(job.tag)):
            return found
        async with mistral_attempt(self._timeout_s):
            with (self._folder / job.requests).open("rb") as content:
                uploaded = await self._client.files.upload_async(
                    file={"file_name": job.requests, "content": content},
                    purpose="batch",
                    timeout_ms=int(self._timeout_s * 1000),
                )
        self._perhaps_made.add(job.tag)
        try:
            async with mistral_attempt(self._timeout_s):
                made = await self._client.batch.jobs.create_async(
                    endpoint="/v1/chat/completions",
                    input_files=[uploaded.id],
                    model=job.model,
                    metadata={_TAG: job.tag},
                    timeout_hours=self._timeout_hours,
                )
        except Refused:
            self._perhaps_made.discard(job.tag)
            raise
        return made.id

    async def _find(self, tag: str) -> str | None:
        page = 0
        while True:
            async with mistral_attempt(self._timeout_s):
                listed = (await self._client.batch.jobs.list_async(page=page, page_size=_PAGE)).data or []
            found = [one.id for one in listed if one.metadata and one.metadata.get(_TAG) == tag]
            if found or len(listed) < _PAGE:
                return found[0] if found else None
            page += 1

    async def _wait(self, jobs: list[_Job], running: list[int]) -> None:
        """Look at the running jobs until all have ended; results are downloaded as soon as a job has."""
        done = dict.fromkeys(running, 0)
        with progress("Mistral batch", sum(len(self._keys(jobs[index])) for index in running)) as advance:
            while any(jobs[index].status is None for index in running):
                for index in running:
                    if jobs[index].status is None:
                        looked_at: BatchJob = await self._patient(self._look, jobs[index])
                        advance(looked_at.completed_requests - done[index], looked_at.status)
                        done[index] = looked_at.completed_requests
                        if looked_at.status in _ENDED:
                            jobs[index] = await self._patient(self._end, jobs[index], looked_at)
                            self._write(jobs)
                if any(jobs[index].status is None for index in running):
                    await asyncio.sleep(self._poll_s)

    async def _look(self, job: _Job) -> BatchJob:
        try:
            async with mistral_attempt(self._timeout_s):
                return await self._client.batch.jobs.get_async(job_id=str(job.job))
        except Refused as error:
            raise Refused(
                f"{self._state}: expected to find the batch job {job.job} at Mistral; {error}; use the account that "
                "started it, or move the folder away to ask again, and pay again"
            ) from error

    async def _end(self, job: _Job, ended: BatchJob) -> _Job:
        """The job with its results on disk, whole: Mistral does not keep them for ever."""
        results = []
        for kind, file_id in (("results", ended.output_file), ("errors", ended.error_file)):
            if file_id:
                name = job.requests.replace("requests", kind)
                async with mistral_attempt(self._timeout_s):
                    response = await self._client.files.download_async(file_id=str(file_id))
                    text = (await response.aread()).decode("utf-8", errors="replace")
                    write_text(self._folder / name, text, private=True)
                results.append(name)
        errors = "; ".join(error.message for error in ended.errors)
        return job.model_copy(update={"status": ended.status, "results": tuple(results), "errors": errors})

    def _answers(self, jobs: list[_Job], questions: list[Question]) -> BatchAnswers:
        return read_batch_results([self._folder / name for job in jobs for name in job.results], questions)

    def _keys(self, job: _Job) -> list[str]:
        return batch_keys(self._folder / job.requests)

    def _read(self) -> list[_Job]:
        if not self._state.is_file():
            return []
        try:
            jobs = _JOBS.validate_json(self._state.read_bytes())
        except ValidationError as error:
            problem = error.errors(include_url=False)[0]
            raise DataError(
                f"{self._state}: expected the list of batch jobs as it was written; got {problem['msg']} at "
                f"{problem['loc']}; restore it, or move the folder away: jobs that still run are then paid again"
            ) from error
        self._perhaps_made |= {job.tag for job in jobs if job.job is None}
        return jobs

    def _write(self, jobs: list[_Job]) -> None:
        write_text(self._state, _JOBS.dump_json(jobs, indent=2).decode() + "\n")


class _Pause(wait_base):
    """As long as the server asks for, or exponentially longer."""

    def __init__(self, first_s: float) -> None:
        self._grow = wait_exponential_jitter(initial=first_s, max=60.0, jitter=first_s)

    def __call__(self, retry_state: RetryCallState) -> float:
        error = retry_state.outcome.exception() if retry_state.outcome else None
        asked_s = error.retry_after_s if isinstance(error, Throttled) else None
        return max(asked_s or 0.0, self._grow(retry_state))
