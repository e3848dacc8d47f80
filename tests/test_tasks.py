"""The labelled sets: what is read equals the files, what is fetched is checked, what goes wrong is said in one line."""

import csv
import hashlib
import http.server
import shutil
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from mlstm_jax import tasks
from mlstm_jax.cli.program import explain
from mlstm_jax.errors import UserError
from mlstm_jax.tasks import sst
from mlstm_jax.text import frame

EXCERPT = Path(__file__).parent / "data" / "sst"
RELEASE = "https://raw.githubusercontent.com/openai/generating-reviews-discovering-sentiment/master/data"


def truth(split, folder=EXCERPT):
    with open(folder / f"{split}_binary_sent.csv", encoding="utf-8", newline="") as file:
        return [(sentence, int(label)) for label, sentence in list(csv.reader(file))[1:]]


def pairs(split):
    return list(zip(split.texts, split.labels.tolist(), strict=True))


class Server:
    """Serves the files of a folder on 127.0.0.1, also as a proxy, and keeps the list of what was asked for."""

    def __init__(self, folder):
        requests = self.requests = []
        self.status = 200

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(handler):
                requests.append((handler.command, handler.path))
                data = (folder / handler.path.rpartition("/")[2]).read_bytes()
                handler.send_response(self.status)
                handler.send_header("Content-Length", str(len(data)))
                handler.end_headers()
                if handler.command == "GET":
                    handler.wfile.write(data)

            do_HEAD = do_GET

            def log_message(handler, *args):
                pass

        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, args=(0.05,), daemon=True).start()

    def close(self):
        self.http.shutdown()
        self.http.server_close()


@pytest.fixture
def served(tmp_path, monkeypatch):
    """A server of a copy of the excerpt, and no proxy."""
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    server = Server(shutil.copytree(EXCERPT, tmp_path / "served"))
    yield server
    server.close()


def register(monkeypatch, url, digests_of=EXCERPT):
    """Let the builder fetch from `url`; files there must be those of `digests_of`."""
    from tensorflow_datasets.core.download.checksums import compute_url_info

    from mlstm_jax.tasks.sst_download import SstBinary

    infos = {f"{url}/{path.name}": compute_url_info(path) for path in digests_of.glob("*.csv")}
    monkeypatch.setattr(SstBinary, "url", url)
    monkeypatch.setattr(SstBinary, "url_infos", infos)


def files(folder):
    return [path for path in folder.rglob("*") if path.is_file()]


def write(folder, split, text):
    for name in ("train", "dev", "test"):
        content = text if name == split else "label,sentence\n0,bad\n1,good\n"
        (folder / f"{name}_binary_sent.csv").write_bytes(content.encode())
    return folder


# A folder of one's own


def test_a_folder_is_read_as_csv_reads_it():
    task = tasks.load("sst", data=EXCERPT)
    for split in ("train", "dev", "test"):
        assert pairs(getattr(task, split)) == truth(split)
    assert [len(split.texts) for split in task[2:5]] == [60, 20, 40]
    assert task.train.labels.dtype == np.int64


def test_a_folder_that_is_not_the_release_says_so():
    assert tasks.load("sst", data=EXCERPT).note == "local files, 60 / 20 / 40"


def test_a_folder_with_the_registered_digests_is_the_papers(tmp_path, monkeypatch):
    table = tmp_path / "checksums.tsv"
    lines = [
        f"url\t0\t{hashlib.sha256(path.read_bytes()).hexdigest()}\t{path.name}\n" for path in EXCERPT.glob("*.csv")
    ]
    table.write_text("".join(lines))
    monkeypatch.setattr(sst, "CHECKSUMS", table)
    assert tasks.load("sst", data=EXCERPT).note == "the paper's binary sentences, 60 / 20 / 40"
    swapped = shutil.copytree(EXCERPT, tmp_path / "swapped")
    shutil.copy(EXCERPT / "train_binary_sent.csv", swapped / "test_binary_sent.csv")
    assert tasks.load("sst", data=swapped).note == "local files, 60 / 20 / 60"


def test_quotes_line_ends_and_other_columns_are_csv(tmp_path):
    write(tmp_path, "dev", '\ufeffid,sentence,label\r\n1,"so ""good"", yes\nyes",1\r\n2,bad\x85,0\r\n')
    assert pairs(tasks.load("sst", data=tmp_path).dev) == [('so "good", yes\nyes', 1), ("bad\x85", 0)]


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        ("", None, "no column 'label'"),
        ("label,text\n0,a\n1,b\n", None, "no column 'sentence'"),
        ("label,sentence\n", None, "0 negative and 0 positive"),
        ("label,sentence\n1,a\n1,b\n", None, "0 negative and 2 positive"),
        ("label,sentence\n0,a\n2,b\n", 3, "'2'; make it 0 (negative) or 1 (positive)"),
        ("label,sentence\n0,a\n,b\n", 3, "the label is ''"),
        ("label,sentence\n0,a\n1\n", 3, "columns"),
        ("label,sentence\n0,a\n1,good, very good\n", 3, "double quotes"),
        ('label,sentence\n0,a\n1,"b\n0,c\n', 3, "unexpected end"),
    ],
)
def test_a_malformed_file_is_named_with_its_line(tmp_path, text, line, says):
    write(tmp_path, "dev", text)
    with pytest.raises(UserError) as caught:
        tasks.load("sst", data=tmp_path)
    message = str(caught.value)
    where = str(tmp_path / "dev_binary_sent.csv")
    assert message.startswith(f"{where}, line {line}: " if line else f"{where}: ") and says in message
    assert "\n" not in message


def test_a_missing_file_or_folder_says_what_to_put_where(tmp_path):
    write(tmp_path, "dev", "").joinpath("dev_binary_sent.csv").unlink()
    for folder, named in ((tmp_path, tmp_path / "dev_binary_sent.csv"), (tmp_path / "none", tmp_path / "none")):
        with pytest.raises(UserError, match="`data`") as caught:
            tasks.load("sst", data=folder)
        assert str(named) in str(caught.value)


def test_an_unknown_task_and_a_folder_for_another_task_are_refused():
    with pytest.raises(UserError, match="unknown task 'sst2'; there are: sst, imdb, rotten_tomatoes"):
        tasks.load("sst2")
    with pytest.raises(UserError, match="`data` goes with sst, mr, cr, subj and mpqa, not with imdb"):
        tasks.load("imdb", data=EXCERPT)


# Fetched


def test_what_is_fetched_equals_the_files_in_their_order(tmp_path, monkeypatch, served):
    register(monkeypatch, served.url)
    fetched, local = tasks.load("sst", data_dir=tmp_path / "tfds"), tasks.load("sst", data=EXCERPT)
    for a, b in zip(fetched[2:5], local[2:5], strict=True):
        assert pairs(a) == pairs(b)
        assert a.labels.dtype == b.labels.dtype
    assert fetched.note == "the paper's binary sentences, 60 / 20 / 40"


def test_the_store_alone_would_not_keep_the_order(tmp_path, monkeypatch, served):
    from mlstm_jax.tasks.sst_download import SstBinary

    register(monkeypatch, served.url)
    tasks.load("sst", data_dir=tmp_path)
    rows = [int(row["row"]) for row in SstBinary(data_dir=tmp_path).as_data_source()["train"]]
    assert sorted(rows) == list(range(60)) != rows


def test_a_second_load_asks_no_server(tmp_path, monkeypatch, served):
    register(monkeypatch, served.url)
    first = tasks.load("sst", data_dir=tmp_path / "tfds")
    assert [path for method, path in served.requests if method == "GET"] == [f"/{f}" for f in sst.FILES.values()]
    served.requests.clear()
    second = tasks.load("sst", data_dir=tmp_path / "tfds")
    assert served.requests == []
    assert [pairs(split) for split in first[2:5]] == [pairs(split) for split in second[2:5]]


def test_fetching_says_one_line_and_leaves_standard_output_alone(tmp_path, monkeypatch, served, capfd):
    register(monkeypatch, served.url)
    tasks.load("sst", data_dir=tmp_path / "tfds")
    out, err = capfd.readouterr()
    assert (out, err) == ("", f"fetching SST (1 MB) into {tmp_path / 'tfds'}\n")


def test_the_registered_files_are_the_releases_three():
    from mlstm_jax.tasks.sst_download import SstBinary

    found = {url: (int(info.size), info.checksum, info.filename) for url, info in SstBinary.url_infos.items()}
    sizes = {
        "train": (726331, "6003623bcb35aad3a446a265b8931b7ccab61fcc10f2e9c1fec916ff67c7be35"),
        "dev": (92802, "f34c4987fea208fefc2d62a1b42c83a766cbfc7ce58c2a878ef953cf91f01729"),
        "test": (190431, "519cea7ed4d22fe7ec4eccbb3d5ba6d88902a3b15ce129f476aa8364463a9fc7"),
    }
    names = {split: f"{split}_binary_sent.csv" for split in sizes}
    assert found == {f"{RELEASE}/{names[split]}": (*sizes[split], names[split]) for split in sizes}
    assert {f"{SstBinary.url}/{file}" for file in sst.FILES.values()} == set(found)


@pytest.mark.parametrize("altered", ["train", "dev", "test"])
def test_altered_bytes_are_refused_and_nothing_is_kept(tmp_path, monkeypatch, served, altered):
    register(monkeypatch, served.url)
    path = tmp_path / "served" / f"{altered}_binary_sent.csv"
    path.write_bytes(path.read_bytes().replace(b"\n0,", b"\n1,", 1))
    for _ in range(2):  # nor is anything of the first attempt taken for good by the second
        with pytest.raises(UserError, match=f"{altered}_binary_sent.csv is not the released file") as caught:
            tasks.load("sst", data_dir=tmp_path / "tfds")
        assert "\n" not in str(caught.value) and "`data`" in str(caught.value)
        assert files(tmp_path / "tfds") == []
    shutil.copy(EXCERPT / path.name, path)
    assert pairs(tasks.load("sst", data_dir=tmp_path / "tfds").train) == truth("train")


def test_the_real_checksums_refuse_another_file_under_the_real_names(tmp_path, monkeypatch, served):
    from tensorflow_datasets.core.download import checksums

    from mlstm_jax.tasks.sst_download import SstBinary

    real = checksums.load_url_infos(sst.CHECKSUMS)
    monkeypatch.setattr(SstBinary, "url", served.url)
    monkeypatch.setattr(SstBinary, "url_infos", {u.replace(RELEASE, served.url): info for u, info in real.items()})
    with pytest.raises(UserError, match="train_binary_sent.csv is not the released file"):
        tasks.load("sst", data_dir=tmp_path / "tfds")
    assert files(tmp_path / "tfds") == []


def test_a_file_without_a_registered_checksum_is_never_fetched(tmp_path, monkeypatch, served):
    register(monkeypatch, served.url)
    from mlstm_jax.tasks.sst_download import SstBinary

    monkeypatch.setattr(SstBinary, "url", f"{served.url}/unregistered")
    with pytest.raises(ValueError, match="Missing checksums"):
        tasks.load("sst", data_dir=tmp_path / "tfds")
    assert [request for request in served.requests if request[0] == "GET"] == []
    assert files(tmp_path / "tfds") == []


def test_a_damaged_store_is_named(tmp_path, monkeypatch, served):
    register(monkeypatch, served.url)
    tasks.load("sst", data_dir=tmp_path / "tfds")
    path = next((tmp_path / "tfds").rglob("*dev.array_record*"))
    whole = path.read_bytes()
    flipped = bytes([whole[3000] ^ 1])
    for damaged in (b"", whole[: len(whole) // 2], whole[:3000] + flipped + whole[3001:]):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match="damaged; delete that folder") as caught:
            tasks.load("sst", data_dir=tmp_path / "tfds")
        assert str(path.parent) in str(caught.value)


# Not fetched


def refused(tmp_path):
    """The message of a load that must give up by itself, and leave nothing."""
    start = time.monotonic()
    with pytest.raises(UserError) as caught:
        tasks.load("sst", data_dir=tmp_path / "tfds")
    assert time.monotonic() - start < 60  # left to itself tensorflow-datasets tries for minutes
    assert files(tmp_path / "tfds") == []
    message = str(caught.value)
    assert "\n" not in message and message.endswith(sst.BY_HAND) and str(tmp_path / "tfds") in message
    return message


def test_a_fetched_sst_is_at_hand_where_tensorflow_datasets_keeps_it(tmp_path, monkeypatch, served):
    register(monkeypatch, served.url)
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))
    assert not sst.is_at_hand()
    tasks.load("sst", data_dir=tmp_path / "tfds")
    assert sst.is_at_hand()
    monkeypatch.delenv("TFDS_DATA_DIR")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert not sst.is_at_hand()
    (tmp_path / "tfds").rename(tmp_path / "tensorflow_datasets")
    assert sst.is_at_hand()


def test_offline_the_error_ends_with_a_command_that_needs_no_network(tmp_path, monkeypatch, served):
    register(monkeypatch, served.url)
    served.close()
    with pytest.raises(UserError) as caught:
        tasks.load("sst", data_dir=tmp_path / "tfds")
    assert explain(caught.value).endswith("; try: python eval_sst.py RUN --task rotten_tomatoes")


def test_offline_says_at_once_what_to_put_where(tmp_path, monkeypatch, served):
    register(monkeypatch, served.url)
    served.close()
    message = refused(tmp_path)
    assert "127.0.0.1 does not answer (ConnectionError)" in message
    for words in (*sst.FILES.values(), "github.com/openai/generating-reviews-discovering-sentiment", "`data`"):
        assert words in message


def test_a_server_that_never_speaks_is_given_up_after_seconds(tmp_path, monkeypatch, served):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        register(monkeypatch, f"http://127.0.0.1:{silent.getsockname()[1]}")
        assert "127.0.0.1 does not answer" in refused(tmp_path)


def test_a_name_that_is_never_resolved_is_given_up_after_seconds(tmp_path, monkeypatch, served):
    register(monkeypatch, "http://sst.invalid")
    asked, over = threading.Event(), threading.Event()

    def resolve(*args, **kwargs):
        asked.set()
        over.wait(60)
        raise socket.gaierror("no answer")

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    message = refused(tmp_path)
    over.set()
    assert asked.is_set() and "sst.invalid does not answer" in message


def test_a_server_that_answers_an_error_is_not_asked_again(tmp_path, monkeypatch, served):
    register(monkeypatch, served.url)
    served.status = 503
    assert "127.0.0.1 answers 503" in refused(tmp_path)
    assert len(served.requests) == 1


def test_a_proxy_of_the_environment_is_asked_in_place_of_the_host(tmp_path, monkeypatch, served):
    register(monkeypatch, "http://sst.invalid/data")
    monkeypatch.setenv("http_proxy", served.url)
    assert pairs(tasks.load("sst", data_dir=tmp_path / "tfds").test) == truth("test")
    assert {path for _, path in served.requests} == {f"http://sst.invalid/data/{file}" for file in sst.FILES.values()}


def test_a_folder_that_cannot_be_written_is_named(tmp_path, monkeypatch, served):
    register(monkeypatch, served.url)
    (tmp_path / "tfds").write_text("a file where the folder should be")
    with pytest.raises(UserError, match="could not be fetched into") as caught:
        tasks.load("sst", data_dir=tmp_path / "tfds")
    assert str(tmp_path / "tfds") in str(caught.value)


def test_without_tensorflow_datasets_a_folder_works_and_fetching_says_so(tmp_path, monkeypatch):
    monkeypatch.delitem(sys.modules, "mlstm_jax.tasks.sst_download", raising=False)
    monkeypatch.delattr(tasks, "sst_download", raising=False)
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    assert len(tasks.load("sst", data=EXCERPT).train.texts) == 60
    with pytest.raises(UserError, match="tensorflow-datasets.*`data`"):
        tasks.load("sst", data_dir=tmp_path)


# Packaged


@pytest.mark.parametrize(("name", "sizes"), [("imdb", [19833, 2534, 2536]), ("rotten_tomatoes", [6778, 836, 916])])
def test_packaged_splits_are_stable_balanced_and_share_no_text(name, sizes):
    task = tasks.load(name)
    framed = [{frame(text) for text in split.texts} for split in task[2:5]]
    assert [len(part) for part in framed] == sizes == [len(split.texts) for split in task[2:5]]
    assert len(set.union(*framed)) == sum(sizes)
    assert all(abs(split.labels.mean() - 0.5) < 0.04 for split in task[2:5])
    assert not any("<br />" in text for split in task[2:5] for text in split.texts)
    assert task.note == "packaged split, not the paper's test set"


def test_no_test_text_of_a_packaged_task_is_trained_on_elsewhere():
    from mlstm_jax.corpus.packaged import split_of

    for name in ("imdb", "rotten_tomatoes"):
        task = tasks.load(name)
        for split in ("train", "dev", "test"):
            assert {split_of(text) for text in getattr(task, split).texts} == {split}


# Weight


def test_importing_tasks_is_light_and_fetching_never_imports_tensorflow(tmp_path, served):
    script = (
        "import sys\n"
        "from pathlib import Path\n"
        "from mlstm_jax import tasks\n"
        "heavy = {'jax', 'tensorflow', 'tensorflow_datasets', 'requests', 'sklearn'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
        "from tensorflow_datasets.core.download.checksums import compute_url_info\n"
        "from mlstm_jax.tasks.sst_download import SstBinary\n"
        "SstBinary.url, folder = sys.argv[1], Path(sys.argv[2])\n"
        "SstBinary.url_infos = {f'{SstBinary.url}/{p.name}': compute_url_info(p) for p in folder.glob('*.csv')}\n"
        "assert len(tasks.load('sst', data_dir=Path(sys.argv[3])).train.texts) == 60\n"
        "assert not {'jax', 'tensorflow'} & set(sys.modules)\n"
    )
    args = [sys.executable, "-c", script, served.url, str(EXCERPT), str(tmp_path / "tfds")]
    done = subprocess.run(args, capture_output=True, text=True, timeout=120, cwd=Path(__file__).parent.parent)
    assert done.returncode == 0, done.stderr
