import os
import subprocess
import sys
import threading
import time

import pytest

from tinc_codec import config
from tinc_codec.errors import ConfigError


@pytest.fixture(autouse=True)
def _fresh(monkeypatch):
    for variable in (*config._ENVIRONMENT.values(), "OMP_NUM_THREADS"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(config, "_settings", None)


def test_defaults():
    assert config.get() == config.Settings(
        device="auto",
        threads="auto",
        max_decoded_bytes=4 * 2**30,
        cache_bytes=64 * 2**20,
        device_memory_bytes="auto",
    )


def test_environment_is_read_once(monkeypatch):
    monkeypatch.setenv("TINC_DEVICE", "cpu")
    monkeypatch.setenv("TINC_THREADS", "3")
    monkeypatch.setenv("TINC_MAX_DECODED_BYTES", " 1000 ")
    assert config.get() == config.Settings(device="cpu", threads=3, max_decoded_bytes=1000)
    monkeypatch.setenv("TINC_THREADS", "auto")
    assert config.get().threads == 3


@pytest.mark.parametrize(
    ("variable", "text"),
    [
        ("TINC_DEVICE", "gpu"),
        ("TINC_THREADS", "0"),
        ("TINC_THREADS", "many"),
        ("TINC_MAX_DECODED_BYTES", "4GiB"),
        ("TINC_MAX_DECODED_BYTES", "auto"),
        ("TINC_DEVICE_MEMORY_BYTES", "0"),
        ("TINC_DEVICE_MEMORY_BYTES", "8GB"),
    ],
)
def test_a_bad_environment_variable_is_named(monkeypatch, variable, text):
    monkeypatch.setenv(variable, text)
    with pytest.raises(ConfigError, match=f"environment variable {variable}='{text}'"):
        config.get()


def test_set_is_a_call_and_a_context_manager():
    config.set(threads=2)
    with config.set(threads=1, device="cpu") as inside:
        assert inside == config.get() == config.Settings(threads=1, device="cpu")
        with config.set(threads=5):
            assert config.get().threads == 5
        assert config.get().threads == 1
        config.set(max_decoded_bytes=10)
    assert config.get() == config.Settings(threads=2, max_decoded_bytes=10)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"device": "gpu"}, "device='gpu'"),
        ({"device": "cuda:"}, "device='cuda:'"),
        ({"device": 0}, "device=0"),
        ({"threads": 0}, 'threads=0 is not an integer >= 1 or "auto"'),
        ({"threads": True}, "threads=True"),
        ({"threads": 1.0}, "threads=1.0"),
        ({"max_decoded_bytes": 0}, "max_decoded_bytes=0"),
        ({"max_decoded_bytes": "auto"}, "max_decoded_bytes='auto'"),
        ({"device_memory_bytes": 0}, 'device_memory_bytes=0 is not an integer >= 1 or "auto"'),
        ({"device_memory_bytes": 1e9}, "device_memory_bytes=1000000000.0"),
        ({"threads": 2, "colour": 1}, "unknown setting colour; known are device, threads"),
    ],
)
def test_a_bad_setting_is_named_and_changes_nothing(changes, message):
    before = config.get()
    with pytest.raises(ConfigError, match=message):
        config.set(**changes)
    assert config.get() == before


def test_threads_follow_the_machine_and_omp(monkeypatch):
    monkeypatch.setattr(config, "available_cpus", lambda: 8)
    assert config.resolve_threads() == 8
    monkeypatch.setenv("OMP_NUM_THREADS", "3,1")
    assert config.resolve_threads() == 3
    monkeypatch.setenv("OMP_NUM_THREADS", "64")
    assert config.resolve_threads() == 8
    with config.set(threads=12):
        assert config.resolve_threads() == 12


def test_available_cpus():
    assert 1 <= config.available_cpus() <= (os.cpu_count() or 1)


def test_device_auto_without_a_driver_does_not_import_torch():
    code = (
        "import sys; from tinc_codec import config; config._nvidia_driver_loaded = lambda: False;"
        "assert config.resolve_device() == 'cpu'; assert 'torch' not in sys.modules"
    )
    command, environment = [sys.executable, "-c", code], {**os.environ, "TINC_DEVICE": ""}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("wanted", "devices", "resolved"),
    [
        ("cpu", 1, "cpu"),
        ("auto", 0, "cpu"),
        ("auto", 1, "cuda"),
        ("cuda", 1, "cuda"),
        ("cuda:1", 2, "cuda:1"),
        ("cuda", 0, ConfigError),
        ("cuda:2", 2, ConfigError),
    ],
)
def test_device(monkeypatch, wanted, devices, resolved):
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(config, "_nvidia_driver_loaded", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: devices > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: devices)
    with config.set(device=wanted):
        if resolved is ConfigError:
            with pytest.raises(ConfigError, match="CUDA device"):
                config.resolve_device()
        else:
            assert config.resolve_device() == resolved


@pytest.mark.gpu
def test_auto_finds_a_real_gpu():
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    assert config.resolve_device() == "cuda"
    with config.set(device="cuda:0"):
        assert config.resolve_device() == "cuda:0"


def test_the_memory_of_a_device(monkeypatch):
    monkeypatch.setenv("TINC_DEVICE_MEMORY_BYTES", "2000000")
    assert config.resolve_device_memory("cpu:0") == config.resolve_device_memory("cuda") == 2000000
    with config.set(device_memory_bytes=5):
        assert config.resolve_device_memory("cuda:1") == 5
    with config.set(device_memory_bytes="auto"):
        assert config.resolve_device_memory("cpu:0") == 1 << 30


def test_half_of_what_is_free_on_a_gpu_is_used(monkeypatch):
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1000, 5000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 600)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 200)
    assert config.resolve_device_memory("cuda:1") == 700


def test_one_thread_at_a_time_launches():
    inside, most, order = 0, 0, []

    def launch(number):
        nonlocal inside, most
        with config.device_slot(), config.device_slot():
            inside += 1
            most = max(most, inside)
            time.sleep(0.005)
            inside -= 1
            order.append(number)

    threads = [threading.Thread(target=launch, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    assert (most, sorted(order)) == (1, list(range(8)))


def test_a_lone_call_gets_every_cpu_and_nested_ones_share_its_slots(monkeypatch):
    monkeypatch.setattr(config, "available_cpus", lambda: 4)
    with config.cpu_slots() as outer, config.cpu_slots() as inner:
        assert (outer, inner) == (4, 4)
    with config.set(threads=3), config.cpu_slots() as count:
        assert count == 3
    with config.set(threads=9), config.cpu_slots() as count:
        assert count == 9


def test_calls_at_once_never_use_more_threads_than_cpus(monkeypatch):
    monkeypatch.setattr(config, "available_cpus", lambda: 4)
    lock, used, most, grants = threading.Lock(), 0, 0, []

    def call():
        nonlocal used, most
        with config.cpu_slots() as count:
            with lock:
                used += count
                most = max(most, used)
                grants.append(count)
            time.sleep(0.005)
            with lock:
                used -= count

    threads = [threading.Thread(target=call) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
        assert not thread.is_alive()
    assert len(grants) == 20
    assert min(grants) >= 1
    assert most <= 4


def test_slots_come_back_after_an_error(monkeypatch):
    monkeypatch.setattr(config, "available_cpus", lambda: 2)
    for _ in range(3):
        with pytest.raises(RuntimeError, match="boom"), config.cpu_slots():
            raise RuntimeError("boom")
    with config.cpu_slots() as count:
        assert count == 2


WORKER = """
import multiprocessing
from tinc_codec import config

def threads(queue):
    with config.cpu_slots() as count, config.device_slot():
        queue.put((count, config.get().max_decoded_bytes))

if __name__ == "__main__":
    for method in multiprocessing.get_all_start_methods():
        context = multiprocessing.get_context(method)
        queue = context.Queue()
        config.set(max_decoded_bytes=123)
        with config.cpu_slots(), config.device_slot():
            process = context.Process(target=threads, args=(queue,))
            process.start()
            count, limit = queue.get(timeout=60)
            process.join()
        assert count == 1, (method, count)
        assert limit == (123 if method == "fork" else 77), (method, limit)
"""


def test_worker_processes_start_with_free_slots_and_one_thread(tmp_path):
    script = tmp_path / "worker.py"
    script.write_text(WORKER)
    root = os.path.dirname(os.path.dirname(os.path.abspath(config.__file__)))
    environment = {**os.environ, "PYTHONPATH": root, "TINC_MAX_DECODED_BYTES": "77"}
    command = [sys.executable, str(script)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
    assert done.returncode == 0, done.stderr
