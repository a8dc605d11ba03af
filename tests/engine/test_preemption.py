"""Guards mmcnx2/engine/preemption.py: signals before, in and after training. What a run saves, and whole runs in
several processes: tests/engine/test_train_loops.py and tests/faults/test_kill_campaign.py.
"""

import multiprocessing
import os
import signal
import time
from types import SimpleNamespace

import pytest

from mmcnx2.engine.checkpoint_hook import CheckpointHook
from mmcnx2.engine.preemption import EXIT_CODE, SIGNALS, PreemptionHook, leave_signals_to_main


@pytest.fixture
def hook(monkeypatch):
    monkeypatch.delenv('MMCNX2_EXIT_FILE', raising=False)
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield PreemptionHook()
    for number, handler in before.items():
        signal.signal(number, handler)


def runner(saved_iter: int = 0) -> SimpleNamespace:
    checkpoints = CheckpointHook()
    checkpoints.saved_iter, checkpoints.last_ckpt, checkpoints.saves = saved_iter, 'iter_8.pth', []
    checkpoints.save_now = checkpoints.saves.append
    logger = SimpleNamespace(info=print, warning=print)
    return SimpleNamespace(hooks=[checkpoints], iter=7, logger=logger)


@pytest.mark.parametrize('number', SIGNALS)
def test_before_training_it_ends_at_once(hook, number, tmp_path, monkeypatch, capfd):
    monkeypatch.setenv('MMCNX2_EXIT_FILE', str(tmp_path / 'code'))
    with pytest.raises(SystemExit) as end, hook.listening():
        os.kill(os.getpid(), number)
        time.sleep(1)
    assert end.value.code == EXIT_CODE == int((tmp_path / 'code').read_text())
    assert 'nothing is to be saved' in capfd.readouterr().err
    PreemptionHook()  # of the run that is started again
    assert not (tmp_path / 'code').exists()


def test_in_training_it_saves_after_the_iteration_and_nothing_changes_the_exit_code_any_more(hook):
    run = runner()
    with pytest.raises(SystemExit) as end, hook.listening():
        hook.before_train(run)
        hook.after_train_iter(run, 0)
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGUSR1)  # a copy
        assert not run.hooks[0].saves
        hook.after_train_iter(run, 0)
    assert end.value.code == EXIT_CODE and run.hooks[0].saves == [run]
    assert all(signal.getsignal(number) is signal.SIG_IGN for number in SIGNALS)


def test_without_a_signal_the_handlers_are_as_before(hook):
    before = [signal.getsignal(number) for number in SIGNALS]
    with hook.listening():
        assert [signal.getsignal(number) for number in SIGNALS] != before
    assert [signal.getsignal(number) for number in SIGNALS] == before


def test_a_second_signal_ends_at_once(hook):
    child = os.fork()
    if child == 0:
        with hook.listening():
            hook.before_train(None)
            os.kill(os.getpid(), signal.SIGTERM)
            hook.received_at -= 10
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGTERM


@pytest.mark.parametrize(('saved_iter', 'leaves'), [(7, True), (3, False)])
def test_validation_is_left_when_the_weights_are_on_the_disk(hook, saved_iter, leaves):
    run = runner(saved_iter)
    hook.before_train(run)
    hook.after_val_iter(run, 0)
    hook.received_at = time.monotonic()
    if leaves:
        with pytest.raises(SystemExit) as end:
            hook.after_val_iter(run, 0)
        assert end.value.code == EXIT_CODE and not run.hooks[0].saves
    else:
        hook.after_val_iter(run, 0)


def test_workers_are_not_in_the_group_that_a_launcher_signals():
    worker = multiprocessing.get_context('fork').Process(target=time.sleep, args=(30,), daemon=True)
    worker.start()
    assert os.getpgid(worker.pid) == os.getpgid(0)
    leave_signals_to_main()
    assert os.getpgid(worker.pid) == worker.pid
    worker.terminate()
    worker.join()
