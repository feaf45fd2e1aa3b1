//! Normalisation statistics from elsewhere: measured over a tile and given back they change nothing, and
//! with them a place of a tile depends on nothing but what lies within the network's reach, and attention.

use std::path::Path;
use std::sync::Arc;

use gigasmith_proto::domain::{Array, Pixels, Rect, Task, TaskResult, TileRules, Wanted, WireDtype};
use gigasmith_worker::backend::Backend;
use gigasmith_worker::device::DeviceThread;
use gigasmith_worker::model::{
    BatchChoice, DeviceChoice, HubOptions, LoadError, LoadOptions, ModelSource, SdxlModel, Variant, load,
};
use safetensors::SafeTensors;
use serde_json::Value;

fn open(source: ModelSource) -> SdxlModel {
    let options = LoadOptions {
        device: DeviceChoice::Cpu,
        dtype: None,
        batch: BatchChoice::Auto,
        variant: Variant::Auto,
        hub: HubOptions::from_lookup(|_| None),
    };
    load(&source, &options).unwrap()
}

fn pocket() -> SdxlModel {
    open(ModelSource::Pocket)
}

fn copy_folder(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy_folder(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// Values without a pattern that a network could like.
fn noise(shape: [usize; 3]) -> Array {
    let n: usize = shape.iter().product();
    let value =
        |i: usize| ((i as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40) as f32 / (1u64 << 23) as f32;
    Array::new(shape, (0..n).map(|i| value(i + 1) - 1.0).collect()).unwrap()
}

fn largest(a: &Array, b: &Array) -> f32 {
    assert_eq!(a.shape(), b.shape());
    a.data().iter().zip(b.data()).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

#[test]
fn statistics_of_the_whole_tile_given_back_change_nothing() {
    let mut model = pocket();
    let groups = model.describe().vae_norms;
    let whole = |height, width| Rect { top: 0, left: 0, height, width };

    let latent = noise([4, 12, 16]);
    let own = model.decode_tile(&latent, None).unwrap();
    let found = model.decoder_norms(&latent, None, whole(12, 16)).unwrap();
    assert_eq!(found.shape(), [groups.decoder as usize, 2]);
    assert!(largest(&model.decode_tile(&latent, Some(&found)).unwrap(), &own) < 1e-5);

    let image = noise([3, 96, 64]);
    let own = model.encode_tile(&image, None).unwrap();
    let found = model.encoder_norms(&image, None, whole(12, 8)).unwrap();
    assert_eq!(found.shape(), [groups.encoder as usize, 2]);
    assert!(largest(&model.encode_tile(&image, Some(&found)).unwrap(), &own) < 1e-5);
    // With other statistics something else comes out, and one's own are still found by the first layer.
    let mut other = found.clone();
    other.data_mut().iter_mut().for_each(|v| *v *= 1.5);
    assert!(largest(&model.encode_tile(&image, Some(&other)).unwrap(), &own) > 1e-2);
    let again = model.encoder_norms(&image, Some(&other), whole(12, 8)).unwrap();
    assert_eq!(again.data()[..8], found.data()[..8]);
}

/// The recorded model with the attention in the middle of its VAE taken out.
fn without_attention(folder: &Path) -> SdxlModel {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/tiny-sdxl");
    copy_folder(&golden, folder);
    let config = folder.join("vae/config.json");
    let mut json: Value = serde_json::from_slice(&std::fs::read(&config).unwrap()).unwrap();
    json["mid_block_add_attention"] = false.into();
    std::fs::write(&config, json.to_string()).unwrap();
    let weights = folder.join("vae/diffusion_pytorch_model.safetensors");
    let bytes = std::fs::read(&weights).unwrap();
    let kept = SafeTensors::deserialize(&bytes).unwrap().tensors();
    let kept = kept.into_iter().filter(|(name, _)| !name.contains("attentions"));
    std::fs::write(&weights, safetensors::serialize(kept, None).unwrap()).unwrap();
    open(ModelSource::Folder(folder.to_owned()))
}

#[test]
fn beyond_the_reach_of_the_convolutions_nothing_changes() {
    let folder = tempfile::tempdir().unwrap();
    let mut model = without_attention(folder.path());
    let reach = model.describe().vae_reach;
    // Two columns in the middle are touched; how far is anything else than before?
    let (height, width, touched) = (4usize, 64usize, 31..33usize);
    let spread = |a: &Array, b: &Array, scale: usize| {
        // Convolutions of whole tiles round together: that much of their neighbours remains.
        let differs = |i: &usize| (a.data()[*i] - b.data()[*i]).abs() > 1e-5;
        let columns = (0..a.data().len()).filter(differs).map(|i| i % (width * scale) / scale);
        let (least, most) = columns.fold((width, 0), |(l, m), c| (l.min(c), m.max(c)));
        (touched.start - least).max(most + 1 - touched.end) as u32
    };
    let changed = |array: &Array, scale: usize| {
        let mut other = array.clone();
        for (i, value) in other.data_mut().iter_mut().enumerate() {
            if touched.contains(&(i % (width * scale) / scale)) {
                *value = 0.9 - *value;
            }
        }
        other
    };
    let latent = noise([4, height, width]);
    let part = Rect { top: 0, left: 0, height, width };
    let norms = model.decoder_norms(&latent, None, part).unwrap();
    let mut decode = |latent: &Array| model.decode_tile(latent, Some(&norms)).unwrap();
    let found = spread(&decode(&latent), &decode(&changed(&latent, 1)), 8);
    // Not farther, and not much less: what is too far costs network calls.
    assert!((reach.decoder - 2..=reach.decoder).contains(&found), "{found} of {}", reach.decoder);

    let image = noise([3, 8 * height, 8 * width]);
    let norms = model.encoder_norms(&image, None, part).unwrap();
    let mut encode = |image: &Array| model.encode_tile(image, Some(&norms)).unwrap();
    let found = spread(&encode(&image), &encode(&changed(&image, 8)), 1);
    assert!((reach.encoder - 2..=reach.encoder).contains(&found), "{found} of {}", reach.encoder);
}

#[tokio::test]
async fn a_device_answers_with_the_part_that_is_wanted() {
    let open = || Ok::<_, LoadError>(Box::new(pocket()) as Box<dyn Backend>);
    let device = DeviceThread::start(open).unwrap();
    let latent = noise([4, 6, 9]);
    let rules = |part, wanted| TileRules { norms: None, wanted, part, wire: WireDtype::F32 };
    let task = |rules| Task::DecodeTile { latent: Arc::new(latent.clone()), rules };
    let part = Rect { top: 1, left: 2, height: 3, width: 4 };
    let Ok(TaskResult::Image(whole)) = device.run(task(TileRules::plain(6, 9)), None).await else { panic!() };
    let Ok(TaskResult::Image(cut)) = device.run(task(rules(part, Wanted::Values)), None).await else {
        panic!()
    };
    assert_eq!((cut.shape(), &cut), (&[3, 24, 32][..], &part.of(&whole, 8)));
    let Ok(TaskResult::Norms(_)) = device.run(task(rules(part, Wanted::Norms)), None).await else { panic!() };
    let outside = Rect { left: 6, ..part };
    let refused = device.run(task(rules(outside, Wanted::Values)), None).await.unwrap_err();
    assert!(refused.permanent && refused.message.contains("6x9"), "{}", refused.message);
    let image = Arc::new(Pixels::new(16, 8, vec![7; 384]).unwrap());
    let encode = Task::EncodeTile { image, rules: TileRules::plain(2, 1) };
    let Ok(TaskResult::Moments(moments)) = device.run(encode, None).await else { panic!() };
    assert_eq!(moments.shape(), [8, 2, 1]);
}
