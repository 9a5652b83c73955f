//! Runs on a real Slurm cluster of virtual nodes (`tests/slurm/up.sh`), with real daemons, MPI
//! ranks and kills. After every fault the run must complete by itself and end with the bits of an
//! undisturbed run.
#![expect(unreachable_pub, reason = "modules of one test binary share their helpers")]
#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

#[path = "../all/breakage.rs"]
#[expect(dead_code, reason = "the other test binary uses the rest")]
mod breakage;
mod cluster;
mod doctor;
mod faults;
mod programme;
#[path = "../all/programs.rs"]
#[expect(dead_code, reason = "the other test binary uses the rest")]
mod programs;
mod runs;
mod storage;
