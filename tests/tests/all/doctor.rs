//! `vljepa-launch doctor` on machines with one fault each: the fault is named, and without it the
//! same fact is fine.

use std::path::Path;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use serde_json::Value;
use vljepa_recipes::load_rates_text;

use crate::breakage::{SmallDisk, as_root};
use crate::programs::{Trial, command, program, text};

/// Two ranks of one thread, which write checkpoints.
const TWO_RANKS: &str = "
stages:
  - name: one
    steps: 2
    batch: 8
    frames: 4
    mixture: {clips: 1, questions: 1}
    mixing: batch
    learning_rate: {peak: 1e-3}
evaluation: {tasks: []}
cluster: {ranks_per_node: 2, threads_per_rank: 1}
";

/// Changes a recipe to one for GPUs.
const CUDA: [&str; 2] = ["device=cuda", "precision=bf16"];

/// What the doctor printed, and its exit code.
struct Answer {
    code: Option<i32>,
    table: Value,
}

impl Answer {
    fn of(output: &Output) -> Self {
        let said = text(output);
        assert!(!said.contains("panicked"), "{said}");
        let table =
            serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {said}"));
        Self { code: output.status.code(), table }
    }

    /// State, text and advice of the only finding of a fact.
    fn only(&self, fact: &str) -> [&str; 3] {
        let all = self.table["findings"].as_array().unwrap().iter();
        let of_fact: Vec<&Value> = all.filter(|finding| finding["fact"] == *fact).collect();
        assert_eq!(of_fact.len(), 1, "{fact}: {}", self.table);
        ["state", "found", "advice"].map(|key| of_fact[0][key].as_str().unwrap_or_default())
    }

    fn failed(&self) -> Vec<&str> {
        let all = self.table["findings"].as_array().unwrap().iter();
        let failed = all.filter(|finding| finding["state"] == "fail");
        failed.map(|finding| finding["fact"].as_str().unwrap()).collect()
    }

    /// Asserts that nothing failed.
    fn healthy(self) -> Self {
        assert_eq!((self.failed(), self.code), (vec![], Some(0)), "{}", self.table);
        self
    }

    /// Asserts that exactly `facts` failed.
    fn failed_in(self, facts: &[&str]) -> Self {
        assert_eq!((self.failed(), self.code), (facts.to_vec(), Some(3)), "{}", self.table);
        self
    }
}

/// Arguments of the doctor for a recipe with changed keys, or for the machine alone.
fn arguments(recipe: Option<&Trial>, sets: &[&str]) -> Vec<String> {
    let mut arguments = vec!["doctor".to_owned(), "--json".to_owned()];
    arguments.extend(recipe.map(|trial| trial.recipe().display().to_string()));
    for set in sets {
        arguments.extend(["--set".to_owned(), (*set).to_owned()]);
    }
    arguments
}

fn doctor(trial: &Trial, sets: &[&str]) -> Answer {
    let arguments = arguments(Some(trial), sets);
    Answer::of(&command("vljepa-launch").args(arguments).output().unwrap())
}

/// The command line of the doctor as text for a shell.
fn line(recipe: Option<&Trial>, sets: &[&str]) -> String {
    let words = arguments(recipe, sets).into_iter().map(|word| format!("'{word}'"));
    let words: Vec<String> = words.collect();
    format!("{} {}", program("vljepa-launch").display(), words.join(" "))
}

/// Runs a script of bash, as root if it mounts something.
fn shell(mut bash: Command, script: &str) -> Answer {
    bash.current_dir(crate::programs::repository());
    Answer::of(&bash.args(["-c", script]).output().unwrap())
}

#[expect(clippy::disallowed_methods, reason = "runs the programs in a changed environment")]
fn bash() -> Command {
    Command::new("bash")
}

#[test]
fn a_machine_that_can_run_the_recipe_passes_with_and_without_it() {
    let trial = Trial::new(TWO_RANKS);
    let runs = trial.path("runs");
    let answer = doctor(&trial, &[&format!("runs={}", runs.display())]).healthy();
    let [state, found, _] = answer.only("programs");
    assert!(state == "pass" && found.contains("mpirun"), "{found}");
    let [state, found, _] = answer.only("cpus");
    assert!(state == "pass" && found.contains("1 compute thread"), "{found}");
    let [_, found, _] = answer.only("gpus");
    assert!(found.contains("device: host"), "{found}");
    let sources: Vec<&str> = answer.table["findings"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|finding| finding["fact"] == "storage")
        .map(|finding| finding["found"].as_str().unwrap().split(':').next().unwrap())
        .collect();
    assert_eq!(sources, ["clips", "questions"], "no stage uses the images");
    assert!(!runs.exists(), "the doctor leaves nothing behind");
    let machine = command("vljepa-launch").args(arguments(None, &[])).output().unwrap();
    Answer::of(&machine).healthy();
    let people = command("vljepa-launch").arg("doctor").arg(trial.recipe()).output().unwrap();
    assert!(text(&people).contains("pass  CPUs "), "{}", text(&people));
    let missing = doctor(&trial, &["data.sources.clips.shards=/nowhere/a.tar"]);
    assert!(
        text(&people).contains("0 fail") && missing.failed() == ["storage"],
        "{}",
        missing.table
    );
}

#[test]
fn a_process_that_is_bound_to_one_cpu_is_named() {
    let trial = Trial::new(TWO_RANKS);
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let mask = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:")).unwrap();
    let first = mask.trim().split(['-', ',']).next().unwrap();
    let bound = format!("exec taskset -c {first} {}", line(Some(&trial), &[]));
    let answer = shell(bash(), &bound).healthy();
    let [state, found, advice] = answer.only("cpus");
    assert_eq!(state, "warn");
    assert!(found.starts_with("1 of ") && found.contains(&format!("bound to {first}")), "{found}");
    assert!(advice.contains("taskset"), "{advice}");
    assert_eq!(doctor(&trial, &[]).healthy().only("cpus")[0], "pass");
}

#[test]
fn too_few_open_files_are_named() {
    let trial = Trial::new(TWO_RANKS);
    let limited = |files: u32| format!("ulimit -n {files}; exec {}", line(Some(&trial), &[]));
    let answer = shell(bash(), &limited(100)).failed_in(&["open_files"]);
    let [_, found, advice] = answer.only("open_files");
    assert!(found.contains("need 130 open files, but only 100"), "{found}");
    assert!(advice.contains("ulimit -n 130"), "{advice}");
    shell(bash(), &limited(200)).healthy();
}

#[test]
fn a_full_disk_is_named() {
    let trial = Trial::new(TWO_RANKS);
    let folder = trial.path("disk");
    let disk = SmallDisk::mount(&folder, 1);
    let runs = format!("runs={}", folder.display());
    let answer = doctor(&trial, &[&runs]).failed_in(&["room", "disk_rate"]);
    let [_, found, advice] = answer.only("room");
    assert!(found.contains("a checkpoint takes") && advice.contains("runs=FOLDER"), "{found}");
    assert!(answer.only("disk_rate")[1].contains("No space left"));
    disk.resize(1500);
    let answer = doctor(&trial, &[&runs]).healthy();
    assert_eq!(answer.only("room")[0], "pass");
    disk.make_read_only();
    let answer = doctor(&trial, &[&runs]).failed_in(&["disk_rate"]);
    assert!(answer.only("disk_rate")[1].contains("Read-only"), "{}", answer.table);
    assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 0, "nothing is left behind");
}

#[test]
fn a_missing_folder_for_temporary_files_is_named_and_hides_no_other_fact() {
    let trial = Trial::new(TWO_RANKS);
    let doctor = |folder: &Path| {
        let mut command = command("vljepa-launch");
        command.args(arguments(Some(&trial), &[])).env("TMPDIR", folder);
        Answer::of(&command.output().unwrap())
    };
    let answer = doctor(Path::new("/nowhere")).failed_in(&["storage"]);
    let [_, found, advice] = answer.only("storage");
    assert!(found.contains("/nowhere") && advice.contains("TMPDIR"), "{found}; {advice}");
    assert_eq!(answer.only("disk_rate")[0], "pass");
    doctor(&trial.path("")).healthy();
}

#[test]
fn the_shared_memory_of_a_container_is_named() {
    let trial = Trial::new(TWO_RANKS);
    let answer = |mib: u32, recipe: Option<&Trial>, sets: &[&str]| {
        let mut unshare = as_root("unshare");
        unshare.args(["--mount", "bash"]);
        let mount = format!("mount -t tmpfs -o size={mib}m tmpfs /dev/shm");
        shell(unshare, &format!("{mount} && exec {}", line(recipe, sets)))
    };
    let eight = ["cluster.ranks_per_node=8"];
    let failed = answer(64, Some(&trial), &eight).failed_in(&["shared_memory"]);
    let [_, found, advice] = failed.only("shared_memory");
    assert_eq!(found, "/dev/shm has 64 MiB free, 8 ranks need 128 MiB");
    assert!(advice.contains("--shm-size"), "{advice}");
    for recipe in [Some(&trial), None] {
        let warned = answer(64, recipe, &[]).healthy();
        let [state, found, _] = warned.only("shared_memory");
        assert!(state == "warn" && found.contains("a container's default"), "{found}");
    }
    assert_eq!(answer(1024, Some(&trial), &eight).healthy().only("shared_memory")[0], "pass");
}

#[cfg(feature = "cuda")]
#[test]
fn a_missing_nccl_is_named_with_where_it_was_looked_for() {
    let trial = Trial::new(TWO_RANKS);
    let doctor = |nccl: Option<&str>, sets: &[&str]| {
        let mut command = command("vljepa-launch");
        command.args(arguments(Some(&trial), &[&CUDA[..], sets].concat()));
        if let Some(nccl) = nccl {
            command.env("VLJEPA_NCCL", nccl);
        }
        Answer::of(&command.output().unwrap())
    };
    let nowhere = Some("/nowhere/libnccl.so.2");
    let missing = doctor(nowhere, &[]);
    let [state, found, advice] = missing.only("nccl");
    assert_eq!((state, missing.code), ("fail", Some(3)));
    assert!(found.contains("tried /nowhere/libnccl.so.2"), "{found}");
    assert!(advice.contains("pip install nvidia-nccl-cu12"), "{advice}");
    let one_rank = doctor(nowhere, &["cluster.ranks_per_node=1"]);
    assert_eq!(one_rank.only("nccl")[0], "pass", "one rank needs none");
    // tests/install.sh has fetched NCCL and NVRTC, and no driver.
    let [state, found, _] = doctor(None, &[]).only("nccl").map(str::to_owned);
    assert!(state == "pass" && found.starts_with("2."), "{found}");
    let [state, found, _] = missing.only("nvrtc");
    assert!(state == "pass" && found.contains(" from /"), "{found}");
    let text_of_host =
        Answer::of(&command("vljepa-launch").args(arguments(Some(&trial), &[])).output().unwrap());
    assert!(!text_of_host.table.to_string().contains("nccl"), "device: host needs no NCCL");
}

#[test]
fn a_program_that_hangs_is_given_up_and_named() {
    let trial = Trial::new(TWO_RANKS);
    let folder = trial.path("bin");
    std::fs::create_dir(&folder).unwrap();
    let script = folder.join("nvidia-smi");
    std::fs::write(&script, "#!/bin/sh\nexec sleep 1000\n").unwrap();
    let made = bash().args(["-c", &format!("chmod +x {}", script.display())]).status().unwrap();
    assert!(made.success());
    let path = std::env::var_os("PATH").unwrap();
    let path = format!("{}:{}", folder.display(), path.display());
    let start = Instant::now();
    let output = command("vljepa-launch")
        .args(arguments(Some(&trial), &CUDA))
        .env("PATH", path)
        .output()
        .unwrap();
    let answer = Answer::of(&output);
    assert!(start.elapsed() < Duration::from_secs(300), "it did not hang");
    let [state, found, _] = answer.only("gpus");
    if cfg!(feature = "cuda") {
        assert!(state == "fail" && found.contains("did not answer within 20 s"), "{found}");
    }
}

/// Copies a program and the libraries that it is linked with to the root folder `root`, except
/// those whose names begin with one of `without`.
fn install(root: &Path, name: &str, without: &[&str]) {
    let program = program(name);
    let listed = bash().args(["-c", &format!("ldd {}", program.display())]).output().unwrap();
    let listed = String::from_utf8(listed.stdout).unwrap();
    let libraries = listed.split_whitespace().filter(|word| word.starts_with('/')).map(Path::new);
    let wanted = libraries.filter(|library| {
        let name = library.file_name().unwrap().to_string_lossy();
        !without.iter().any(|start| name.starts_with(start))
    });
    for file in wanted {
        let copy = root.join(file.strip_prefix("/").unwrap());
        std::fs::create_dir_all(copy.parent().unwrap()).unwrap();
        std::fs::copy(file, copy).unwrap();
    }
    std::fs::create_dir_all(root.join("bin")).unwrap();
    std::fs::copy(&program, root.join("bin").join(name)).unwrap();
}

#[test]
fn a_bare_root_folder_without_proc_and_sys_is_examined_and_what_it_lacks_is_named() {
    let root = tempfile::tempdir().unwrap();
    install(root.path(), "vljepa-launch", &[]);
    // Programs are started with it as their input.
    let null = root.path().join("dev/null");
    std::fs::create_dir(null.parent().unwrap()).unwrap();
    let made = as_root("mknod").arg(&null).args(["-m", "666", "c", "1", "3"]).status().unwrap();
    assert!(made.success());
    let doctor = || {
        let mut chroot = as_root("chroot");
        chroot.arg(root.path()).args(["/bin/vljepa-launch", "doctor", "--json"]);
        Answer::of(&chroot.output().unwrap())
    };
    let answer = doctor().failed_in(&["programs"]);
    let [_, found, advice] = answer.only("programs");
    assert!(found.contains("vljepa-worker was not found"), "{found}");
    assert!(advice.contains("cargo build"), "{advice}");
    let [state, found, _] = answer.only("shared_memory");
    assert!(state == "warn" && found.contains("/dev/shm"), "{found}");
    assert_eq!(answer.only("cpus")[0], "pass");
    assert_eq!(answer.only("disk_rate")[0], "pass");
    // The worker without the libraries that it is linked with.
    let all = ["libmpi", "libav", "libsw"];
    install(root.path(), "vljepa-worker", &all);
    let answer = doctor().failed_in(&["programs"]);
    let [_, found, _] = answer.only("programs");
    assert!(all.iter().any(|library| found.contains(library)), "{found}");
}

#[test]
fn a_request_that_makes_no_sense_is_refused() {
    use crate::user_errors::refused;
    refused(&["doctor", "nowhere.yaml"], &["nowhere.yaml"]);
    refused(&["doctor", "--set", "device=cuda"], &["changes a recipe, and none is given"]);
    refused(&["doctor", "--node", "a.yaml"], &["cannot be used with"]);
}

#[test]
fn a_machine_slower_than_the_plan_assumes_is_named_with_its_rate() {
    let trial = Trial::new(TWO_RANKS);
    let measured = command("vljepa-worker")
        .args(["rates".as_ref(), trial.recipe().as_os_str()])
        .output()
        .unwrap();
    assert!(measured.status.success(), "{}", text(&measured));
    let measured = String::from_utf8(measured.stdout).unwrap();
    // Other programs may slow this machine down between two measurements.
    let with_products = |factor: f64| {
        let mut rates = load_rates_text("rates", &measured).unwrap();
        let all = [
            &mut rates.products_tflops,
            &mut rates.attention_forward_tflops,
            &mut rates.attention_backward_tflops,
        ];
        for curve in all {
            curve.values.iter_mut().for_each(|(_, rate)| *rate /= 20.0);
        }
        rates.products_tflops.values.iter_mut().for_each(|(_, rate)| *rate *= factor);
        for rate in [
            &mut rates.memory_bound_tb_per_s,
            &mut rates.optimizer_tb_per_s,
            &mut rates.loss_tflops,
        ] {
            rate.value /= 20.0;
        }
        rates.launch_us.value *= 20.0;
        (rates.ceiling_tflops, rates.peak_tflops) = (1e6, 1e6);
        let file = trial.path(&format!("rates-{factor}.yaml"));
        std::fs::write(&file, rates.to_yaml().unwrap()).unwrap();
        let mut arguments = arguments(Some(&trial), &[]);
        arguments.extend(["--bench", "--rates", file.to_str().unwrap()].map(str::to_owned));
        Answer::of(&command("vljepa-launch").args(arguments).output().unwrap())
    };
    let as_planned = with_products(1.0);
    let [state, found, _] = as_planned.only("rates");
    assert_eq!(state, "pass", "{found}");
    assert!(found.starts_with("of the planned speed: products "), "{found}");
    let slow = with_products(1e3);
    let [state, found, advice] = slow.only("rates");
    assert_eq!(state, "warn", "{found}");
    let named = found.split_once("; slower: ").unwrap().1;
    assert!(named.starts_with("products_tflops at ") && !named.contains("; "), "{found}");
    assert!(advice.contains("vljepa-launch plan RECIPE --rates"), "{advice}");
}
