//! t
#![allow(clippy::print_stdout)]
use gigasmith_proto::domain::*;
use gigasmith_worker::backend::Backend;
use gigasmith_worker::model::*;
use std::time::Instant;
fn main() {
    let threads: usize = std::env::args().nth(1).unwrap().parse().unwrap();
    rayon::ThreadPoolBuilder::new().num_threads(threads).build_global().unwrap();
    let o = LoadOptions { device: DeviceChoice::Cpu, dtype: None, hub: HubOptions::from_lookup(|_| None) };
    let t = Instant::now();
    let mut m = load(&ModelSource::parse("pocket").unwrap(), &o).unwrap();
    println!("load {:?}", t.elapsed());
    let t = Instant::now();
    let e = m.encode_text("mountains at dusk").unwrap();
    println!("text {:?} (with placing)", t.elapsed());
    let t = Instant::now();
    let n = m.encode_text("").unwrap();
    println!("text {:?}", t.elapsed());
    let c = Conditioning { prompt: e.states, pooled: e.pooled, negative: Some((n.states, n.pooled)) };
    let s = m.describe().patch_side as usize;
    let task = NoiseTask {
        latent: Array::new([4, s, s], (0..4 * s * s).map(|i| (i as f32).sin()).collect()).unwrap(),
        timestep: 501,
        time_ids: [128.0, 128.0, 0.0, 0.0, 128.0, 128.0],
        conditioning: c.id(),
        guidance_scale: 5.0,
        pag: None,
    };
    let time = |name: &str, f: &mut dyn FnMut()| {
        f();
        let mut v: Vec<f64> = (0..11)
            .map(|_| {
                let t = Instant::now();
                f();
                t.elapsed().as_secs_f64() * 1e3
            })
            .collect();
        v.sort_by(f64::total_cmp);
        println!("{name}: median {:.2} ms, best {:.2}", v[5], v[0]);
    };
    let z = Array::new([4, s, s], (0..4 * s * s).map(|i| (i as f32).sin()).collect()).unwrap();
    let im = Array::new([3, 8 * s, 8 * s], (0..3 * 64 * s * s).map(|i| (i as f32).sin()).collect()).unwrap();
    if let Some(n) = std::env::args().nth(2) {
        for _ in 0..n.parse::<usize>().unwrap() {
            m.predict_noise(&task, &c).unwrap();
        }
        return;
    }
    time("unet", &mut || {
        m.predict_noise(&task, &c).unwrap();
    });
    time("decode", &mut || {
        m.decode_tile(&z).unwrap();
    });
    time("encode", &mut || {
        m.encode_tile(&im).unwrap();
    });
}
