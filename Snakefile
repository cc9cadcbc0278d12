"""The DAG: one papermill job a notebook, then the book. Run through `make book`; options in tools/run.py."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(workflow.basedir)))
from tools import notebooks as nb
from tools.resources import resources as asked_for

PROFILE = config["profile"]
RUN = f"runs/{PROFILE}"
if PROFILE in nb.ONE_THREAD:
    shell.prefix("export OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1; ")

# On a cluster the book is built where `make book` runs: it needs no GPU, and no place in the queue.
localrules:
    all,
    book,


rule all:
    input:
        f"{RUN}/book/_build/html/index.html",


MODELS = nb.models(PROFILE)
for made, (name, function, seed) in MODELS.items():

    rule:
        name:
            f"model_{function.split(':')[0].rpartition('.')[2]}_{seed}"
        input:
            parameters=[str(path) for path in [nb.profile_file(name, PROFILE)] if path],
            modules=nb.lib_modules(name),
        output:
            touch(made),
        params:
            args=f"{name} {function} {seed} --profile {PROFILE}",
        log:
            made.replace("/models/", "/logs/").replace(".done", ".log"),
        threads: 1
        priority: 10_000
        resources:
            **asked_for(name, PROFILE),
        message:
            f"{name}: {function} of seed {seed} ({PROFILE})"
        shell:
            "{sys.executable:q} -m tools.replicate {params.args} --gpus {resources.gpu} >{log} 2>&1"


for job in (job for name in nb.names() for job in nb.to_compute(name, PROFILE)):

    rule:
        name:
            f"replicates_{job.notebook}_{job.function}_{job.seeds[0]}"
        input:
            parameters=[str(path) for path in [nb.profile_file(job.notebook, PROFILE)] if path],
            modules=nb.lib_modules(job.notebook),
            needs=[f"{RUN}/results/{other}.json" for other in nb.needs(job.notebook)],
            models=[nb.trained(job, seed, PROFILE) for seed in job.seeds if job.own],
        output:
            # The files of the replicates are no outputs: what has ended stays when a job is killed.
            touch(nb.done(job, RUN)),
        params:
            job=job,
            profile=PROFILE,
        log:
            f"{RUN}/logs/{job.notebook}.{job.function}.{job.seeds[0]}.log",
        threads: 1
        priority: int(nb.recorded(job.notebook, PROFILE).get("seconds", 0)) + 1000
        resources:
            **asked_for(job.notebook, PROFILE),
        message:
            f"{job.notebook}: {job.function}, seeds {job.seeds[0]} to {job.seeds[-1]} ({PROFILE})"
        shell:
            "{sys.executable:q} -m tools.replicate {params.job.notebook} {params.job.function} {params.job.seeds[0]}"
            " --profile {params.profile} --gpus {resources.gpu} >{log} 2>&1"


for name in nb.names():

    rule:
        name:
            f"notebook_{name}"
        input:
            source=str(nb.paths()[name]),
            parameters=[str(path) for path in [nb.profile_file(name, PROFILE)] if path],
            modules=nb.lib_modules(name),
            needs=[f"{RUN}/results/{other}.json" for other in nb.needs(name)],
            replicates=[nb.done(job, RUN) for job in nb.to_compute(name, PROFILE)],
        output:
            notebook=f"{RUN}/notebooks/{name}.ipynb",
            results=f"{RUN}/results/{name}.json",
        params:
            name=name,
            profile=PROFILE,
            claims=nb.claims_digest(name),
        log:
            f"{RUN}/logs/{name}.log",
        threads: 1
        # What others wait for starts first, then what takes longest, so that it does not run alone at the end.
        priority: int(nb.recorded(name, PROFILE).get("seconds", 0)) + 10_000 * any(name in nb.needs(other) for other in nb.names())
        resources:
            **asked_for(name, PROFILE),
        message:
            f"{name} ({PROFILE})"
        shell:
            "{sys.executable:q} -m tools.execute {params.name} --profile {params.profile} --gpus {resources.gpu} >{log} 2>&1"


rule book:
    input:
        notebooks=expand(f"{RUN}/notebooks/{{name}}.ipynb", name=nb.names()),
        results=expand(f"{RUN}/results/{{name}}.json", name=nb.names()),
        pages=[str(path) for folder in ("book", "lib") for path in Path(folder).rglob("*.*") if "__pycache__" not in path.parts],
        claims="claims.yaml",
        builder=["tools/book.py", "tools/pages.py", "tools/notebooks.py", *map(str, Path("results/bench").glob("*.json"))],
    params:
        profile=PROFILE,
    output:
        f"{RUN}/book/_build/html/index.html",
    log:
        f"{RUN}/logs/book.log",
    message:
        f"the book ({PROFILE})"
    shell:
        "{sys.executable:q} -m tools.book --profile {params.profile} >{log} 2>&1"
