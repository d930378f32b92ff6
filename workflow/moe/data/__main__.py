"""`python -m moe.data prepare|fetch|tasks|instructions|check|benchmark …`: corpora by hand, or from a rule."""

import argparse
import os
import sys
from pathlib import Path

from moe.data.corpus import Corpus
from moe.data.definition import load_definition
from moe.data.prepare import prepare


def main(arguments=None):
    """Run a command; wrong input ends with one sentence on stderr and status 2."""
    options = parser().parse_args(arguments)
    try:
        options.run(options)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def parser():
    """The commands and their options."""
    top = argparse.ArgumentParser(prog="python -m moe.data", description=__doc__)
    commands = top.add_subparsers(required=True)

    def command(run, *positionals, **options):
        sub = commands.add_parser(run.__name__.removeprefix("run_"), help=run.__doc__)
        for name in positionals:
            sub.add_argument(name, type=Path)
        for name, (kind, default, text) in options.items():
            sub.add_argument(f"--{name.replace('_', '-')}", type=kind, default=default, help=text)
        sub.set_defaults(run=run)

    command(
        run_prepare,
        "definition",
        "folder",
        fetched=(Path, None, "what `fetch` wrote"),
        workers=(int, None, "processes and threads"),
    )
    command(
        run_fetch,
        "definition",
        "folder",
        mirror=(Path, None, "folder with the hub's layout, used instead of the network"),
    )
    command(
        run_tasks,
        "folder",
        count=(int, 500, "documents a task"),
        seed=(int, 0, "of the draw"),
        context_bytes=(int, 200, "length of a context"),
    )
    command(
        run_fetch_instructions,
        "definition",
        "folder",
        mirror=(Path, None, "folder with the hub's layout, used instead of the network"),
    )
    command(run_instructions, "definition", "corpus", "folder", fetched=(Path, None, "what `fetch_instructions` wrote"))
    command(run_check, "folder")
    command(run_benchmark, "definition", megabytes=(float, 16, "of text"))
    return top


def run_prepare(options):
    """definition -> folder of token files"""
    definition = load_definition(options.definition)
    prepare(definition, options.folder, fetched=options.fetched, workers=options.workers)
    corpus = Corpus(options.folder)
    for split, counts in corpus.manifest["splits"].items():
        print(f"{split}: {counts['documents']} documents, {counts['tokens']} tokens, {counts['bytes']} bytes")


def run_fetch(options):
    """bring the files of a hub definition"""
    from moe.data.hub import fetch

    fetch(load_definition(options.definition), options.folder, mirror=options.mirror)


def run_tasks(options):
    """make the local evaluation tasks of a prepared corpus"""
    from moe.data.tasks import make_local_tasks

    make_local_tasks(options.folder, count=options.count, seed=options.seed, context_bytes=options.context_bytes)


def run_fetch_instructions(options):
    """bring the file of a hub definition of instructions"""
    from moe.data.hub import fetch
    from moe.data.instructions import as_corpus, load_instructions

    fetch(as_corpus(load_instructions(options.definition)), options.folder, mirror=options.mirror)


def run_instructions(options):
    """definition and corpus -> folder of an instruction set"""
    from moe.data.instructions import load_instructions, prepare_instructions

    definition = load_instructions(options.definition)
    made = prepare_instructions(definition, options.corpus, options.folder, fetched=options.fetched)
    print("{examples} examples, {tokens} tokens, {answers} with a loss; {cut} cut, {left_out} left out".format(**made))


def run_check(options):
    """compare every file of a prepared corpus with its checksum"""
    Corpus(options.folder).verify()


def run_benchmark(options):
    """tokenization rate beside the library's own"""
    from moe.data.benchmark import benchmark

    rates = benchmark(load_definition(options.definition), megabytes=options.megabytes)
    print(
        f"{rates['megabytes']:.1f} MB on {len(os.sched_getaffinity(0))} cores: bare encode_batch"
        f" {rates['bare']:.2f} MB/s (encode_batch_fast {rates['bare_fast']:.2f}), text files to token"
        f" files {rates['ours']:.2f} MB/s, ratio {rates['ratio']:.2f}"
    )


if __name__ == "__main__":
    sys.exit(main())
