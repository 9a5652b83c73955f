//! Tests that cross crates: comparisons with golden files, programs run as a user runs them, and
//! rules of the workspace.
#![expect(unreachable_pub, reason = "modules of one test binary share their helpers")]
#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

mod architecture;
mod breakage;
mod collapse;
#[cfg(feature = "cuda")]
mod cubins;
mod doctor;
mod drills;
mod dual_encoder;
mod evaluation;
mod faults;
mod feed;
mod fuzzing;
mod golden;
mod golden_captions;
mod golden_clip_siglip2;
mod golden_dual;
mod golden_language_model;
mod golden_losses;
mod golden_pe;
mod golden_plain_text;
mod golden_qwen3;
mod golden_step;
mod golden_text;
mod golden_vjepa2_1;
mod golden_vlm;
mod golden_ward;
mod golden_x_encoder;
#[cfg(feature = "cuda")]
mod gpu_language_model;
#[cfg(feature = "cuda")]
mod gpu_run;
#[cfg(feature = "cuda")]
mod gpu_step;
#[cfg(feature = "cuda")]
mod gpu_x_encoder;
mod init;
mod observed;
mod plan;
#[cfg(feature = "video")]
mod prepare;
mod programme;
mod programs;
mod real_material;
#[cfg(feature = "cuda")]
mod rehearsal;
mod resume;
mod score_command;
#[path = "../../../launcher/tests/fake_run/screen.rs"]
mod screen;
#[cfg(feature = "video")]
mod selective;
#[cfg(feature = "video")]
mod sets;
mod sharding;
mod steps;
mod storage;
#[cfg(feature = "video")]
mod stream;
mod table;
mod tiny;
mod user_errors;
mod vlm;
mod watch;
mod weights_command;
mod world_size;
mod y_decoder;
