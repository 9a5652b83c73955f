//! `vljepa-shards prepare` on remote shards.

use super::proxy::Fault;
use super::servers::{put_s3, s3};
use crate::programs::{command, small_set, text};

#[test]
fn a_set_is_prepared_from_s3_with_the_bytes_of_the_local_one() {
    let folder = tempfile::tempdir().unwrap();
    let shard = small_set().join("train/images-000000.tar");
    put_s3("prepare/images-000000.tar", &std::fs::read(&shard).unwrap());
    let (proxy, options) = s3();
    let prepare = |shards: &str, into: &str| {
        let mut prepare = command("vljepa-shards");
        prepare.args(["prepare", "webdataset", shards, "--short-side", "16", "--into"]);
        prepare.arg(folder.path().join(into)).envs(options.variables.iter().cloned());
        prepare.output().unwrap()
    };
    let local = prepare(shard.to_str().unwrap(), "local");
    assert!(local.status.success(), "{}", text(&local));
    proxy.disturb(&[Fault::Status(503), Fault::Cut(1000), Fault::Status(500)]);
    let remote = prepare("s3://bucket/prepare/images-{000000..000000}.tar", "remote");
    assert!(remote.status.success(), "{}", text(&remote));
    let shard =
        |into: &str| std::fs::read(folder.path().join(into).join("shard-000000.tar")).unwrap();
    assert!(shard("local") == shard("remote"));
    assert!(!proxy.requests().is_empty());
    let missing = prepare("s3://bucket/prepare/no-such-{0..1}.tar", "missing");
    let said = text(&missing);
    assert!(!missing.status.success() && said.contains("no-such-0.tar"), "{said}");
    assert!(!folder.path().join("missing").exists(), "a set that cannot be read leaves no folder");
}
