"""A built wheel, installed elsewhere, runs in an empty folder."""

import subprocess
import sys
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_a_wheel_runs_in_an_empty_folder(tmp_path):
    pytest.importorskip("hatchling", reason="the build backend, in the extra [test]")
    build = "from hatchling.build import build_wheel; import sys; print(build_wheel(sys.argv[1]))"
    built = subprocess.run([sys.executable, "-c", build, str(tmp_path)], cwd=ROOT, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    wheel = tmp_path / built.stdout.split()[-1]
    venv.create(tmp_path / "env", with_pip=True)
    python = tmp_path / "env" / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "-q", "--no-deps", "--no-index", wheel], check=True)
    # The second environment sees torch and the rest, but not this checkout's runner.
    (site,) = (tmp_path / "env" / "lib").glob("python*/site-packages")
    shared = [p for p in sys.path if p.endswith("site-packages")]
    (site / "shared.pth").write_text("\n".join(shared))
    folder = tmp_path / "empty"
    folder.mkdir()
    where = subprocess.run(
        [
            python,
            "-c",
            "import runner; from runner.config.conf_dir import conf_dir; print(runner.__file__, conf_dir())",
        ],
        cwd=folder,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert str(ROOT) not in where
    script = tmp_path / "env" / "bin" / "runner"
    done = subprocess.run([script, "trainer.epochs=1"], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert list(folder.glob("outputs/*/*/run.json"))
    words = [script, "-m", "seed=1", "trainer.dry_run=true", "sweep.name=one"]  # the plugins are in the wheel too
    swept = subprocess.run(words, cwd=folder, capture_output=True, text=True)
    assert swept.returncode == 0 and (folder / "outputs/sweeps/one/seed=1,trainer.dry_run=True/run.json").exists(), (
        swept.stderr
    )
    words = [script, "report", "outputs/sweeps/one"]  # and what a page is made of
    said = subprocess.run(words, cwd=folder, capture_output=True, text=True)
    assert "uPlot" in (folder / "outputs/sweeps/one/report.html").read_text(), said.stderr
    assert "warmup_cosine" in subprocess.run([script, "--help"], cwd=folder, capture_output=True, text=True).stdout
