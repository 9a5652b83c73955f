//! A feed uploads the batches of its stream unchanged, and an error reaches the step of the failed
//! batch.

use vljepa_data::batch::Batch;
use vljepa_data::catalogue::Catalogues;
use vljepa_data::shard_index::ShardIndex;
use vljepa_data::storage::Storage;
use vljepa_data::stream::BatchStream;
#[cfg(feature = "cuda")]
use vljepa_kernels::attention::launch::Mode;
#[cfg(feature = "cuda")]
use vljepa_kernels::device::cuda::Cuda;
use vljepa_kernels::{DType, Device, Tensor, copy};
use vljepa_recipes::{RankId, Recipe};
use vljepa_worker::training::feed::Feed;

use crate::programs::{Trial, small_set};

const STEPS: u64 = 7;

/// Returns a recipe with one stage of seven steps.
fn recipe(sets: &[String]) -> Recipe {
    let trial = Trial::new("
stages:
  - {name: pictures, steps: 7, batch: 6, frames: 2, mixture: {images: 1}, learning_rate: {peak: 1e-3}}
evaluation: {tasks: []}
");
    vljepa_recipes::load(&trial.recipe(), sets).unwrap().recipe
}

fn feed(device: Device, recipe: &Recipe, rank: RankId, first_step: u64) -> Feed {
    let catalogues = Catalogues::of_stage(&Storage::default(), recipe, 0).unwrap();
    Feed::open(device, recipe, &catalogues, 0, rank, first_step).unwrap()
}

fn devices() -> Vec<Device> {
    vec![
        Device::Host,
        #[cfg(feature = "cuda")]
        Device::Cuda(Cuda::for_tests(Mode::Fast)),
    ]
}

fn on_host(batch: Batch<Tensor>, device: Device) -> Batch {
    let read = |frames: Tensor, _| {
        let mut read = Tensor::zeros(Device::Host, DType::U8, frames.shape())?;
        copy::copy(&device.compute_stream(), frames.view(), read.view_mut())?;
        Ok::<_, vljepa_kernels::KernelError>(read.view().host_u8("test", "frames")?.to_vec())
    };
    batch.moved(read).unwrap()
}

#[test]
fn a_device_gets_the_batches_of_the_stream_from_any_step_on() {
    let recipe = recipe(&[]);
    let second = RankId { rank: 1, world_size: 2 };
    for device in devices() {
        for first in [0, 3] {
            let mut stream = BatchStream::open(&recipe, 0, second, first).unwrap();
            let mut batches = feed(device, &recipe, second, first);
            let mut frames = Vec::new();
            for step in first..STEPS {
                let (want, got) =
                    (stream.next().unwrap(), on_host(batches.next().unwrap(), device));
                assert!(got == want, "step {step} on {}", device.name());
                frames.push(got.frames);
            }
            assert!(frames.windows(2).all(|pair| pair[0] != pair[1]), "consecutive batches differ");
            assert!(batches.next().is_err(), "the stage has {STEPS} steps");
        }
    }
}

#[test]
fn a_feed_that_is_dropped_early_leaves_the_device_usable() {
    let recipe = recipe(&[]);
    for device in devices() {
        for taken in [0, 1, 4] {
            let mut batches = feed(device, &recipe, RankId::SINGLE, 0);
            for _ in 0..taken {
                batches.next().unwrap();
            }
        }
        let tensor = Tensor::zeros(device, DType::F32, &[100]).unwrap();
        assert_eq!(tensor.to_f32().unwrap().to_vec(), vec![0.0; 100]);
    }
}

#[test]
fn an_error_reaches_the_step_whose_batch_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let shard = folder.path().join("images.tar");
    std::fs::copy(small_set().join("train/images-000000.tar"), &shard).unwrap();
    let set = |text: String| recipe(&[text, "data.bad_samples.max_consecutive=0".to_owned()]);
    let recipe = set(format!("data.sources.images.shards={}", shard.display()));
    // Overwrites an image of the fifth batch.
    let batch = |step| BatchStream::open(&recipe, 0, RankId::SINGLE, step).unwrap().next();
    let key = batch(4).unwrap().samples[0].key.clone();
    let index = ShardIndex::read(&shard).unwrap();
    let sample = index.samples.iter().find(|sample| *sample.key == *key).unwrap();
    let mut bytes = std::fs::read(&shard).unwrap();
    for member in &sample.members {
        let start = usize::try_from(member.offset).unwrap();
        bytes[start..][..usize::try_from(member.length).unwrap()].fill(0);
    }
    std::fs::write(&shard, bytes).unwrap();
    let mut stream = BatchStream::open(&recipe, 0, RankId::SINGLE, 0).unwrap();
    let want = (0..STEPS).find_map(|step| stream.next().err().map(|e| (step, e.to_string())));
    let want = want.expect("a sample is bad");
    assert!(want.0 <= 4 && want.1.contains(&key), "{want:?}");
    for device in devices() {
        let mut batches = feed(device, &recipe, RankId::SINGLE, 0);
        let got = (0..STEPS).find_map(|step| batches.next().err().map(|e| (step, e.to_string())));
        assert_eq!(got.as_ref(), Some(&want));
    }
}
