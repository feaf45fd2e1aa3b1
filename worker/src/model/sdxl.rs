//! An SDXL model on a device: loading, describing, and answering.
//!
//! Loading reads configurations, checks every tensor's name and shape, and hashes every weight, but
//! places none. Components are placed when they are first needed and dropped when others are: text
//! encoders when anything else is asked, the VAE on a GPU when patches start. The noise predictor
//! stays, unless the VAE has no room beside it.

use candle_core::{Device, Tensor};
use gigasmith_proto::domain::{Array, Conditioning, Dtype, ModelDescription, NoiseTask, Rect, TextEncoding};

use super::clip::side_by_side;
use super::config::{ModelIndex, PresetFile, TextConfig, Training, read_schedule};
use super::describe::{device_bytes, fingerprints, native_sizes};
use super::error::{LoadError, explained};
use super::files::ModelFiles;
use super::guidance::resolve_blocks;
use super::hub::{self, HubOptions};
use super::kernels;
use super::kind;
use super::layout::{self, Variant};
use super::networks::{Networks, Text};
use super::norms::Norms;
use super::pocket;
use super::predictor::{Checked, Predictor, Row, Running};
use super::select::{BatchChoice, DeviceChoice, candle_dtype, dtype_for, numeric_class};
use super::source::ModelSource;
use super::tokenizer::Tokenizer;
use super::unet::pag_names;
use super::vae::Vae;
use super::weights::Mode;
use crate::backend::{Backend, BackendError, Patch, Started};
use crate::synthetic::Synthetic;

/// How to load a model.
#[derive(Debug, Clone)]
pub struct LoadOptions {
    /// Where to compute.
    pub device: DeviceChoice,
    /// What to compute in; `None` for f32 on a CPU and f16 on a GPU.
    pub dtype: Option<Dtype>,
    /// How many patches go through the network together.
    pub batch: BatchChoice,
    /// Which weight files to take where there are several: the same for all devices and number formats.
    pub variant: Variant,
    /// How to reach the hub.
    pub hub: HubOptions,
}

/// Opens any model: one with weights as [`load`] does, or the synthetic one.
pub fn open(source: &ModelSource, options: &LoadOptions) -> Result<Box<dyn Backend>, LoadError> {
    match source {
        ModelSource::Synthetic(synthetic) => Ok(Box::new(Synthetic::new(*synthetic))),
        _ => Ok(Box::new(load(source, options)?)),
    }
}

/// Finds, checks and opens a model with weights. Fetches it first where it is the hub's.
pub fn load(source: &ModelSource, options: &LoadOptions) -> Result<SdxlModel, LoadError> {
    let device = options.device.open()?;
    let dtype = dtype_for(&device, options.dtype);
    let files = match source {
        ModelSource::Pocket => ModelFiles::Embedded(pocket::FILES),
        ModelSource::Synthetic(_) => return Err(LoadError::UnknownSource(source.name())),
        ModelSource::Folder(path) => ModelFiles::Folder(path.clone()),
        ModelSource::Hub { id, revision } => {
            ModelFiles::Folder(hub::fetch(&options.hub, id, revision.as_deref(), options.variant)?)
        }
    };
    if let ModelFiles::Folder(path) = &files
        && !files.exists("model_index.json")
    {
        return Err(kind::of_folder(path));
    }
    // The embedded model has one kind of weights, whatever is wanted of others.
    let variant = if *source == ModelSource::Pocket { Variant::Auto } else { options.variant };
    SdxlModel::open(&files, source.name(), device, (dtype, options.batch, variant))
}

/// An SDXL model on a device.
#[derive(Debug)]
pub struct SdxlModel {
    networks: Networks,
    /// Patches of a call, at most; on a GPU always.
    batch: usize,
    /// What the VAE needs, with its weights.
    vae_bytes: u64,
    tokenizers: [Tokenizer; 2],
    description: ModelDescription,
    text: Option<Text>,
    predictor: Option<Predictor>,
    vae: Option<Vae>,
}

impl SdxlModel {
    fn open(
        files: &ModelFiles,
        name: String,
        device: Device,
        (dtype, batch, variant): (Dtype, BatchChoice, Variant),
    ) -> Result<Self, LoadError> {
        let index = ModelIndex::read(files)?;
        let presets = PresetFile::read(files)?;
        let schedule = read_schedule(files, index.scheduler)?;
        layout::check(&|path| files.exists(path), variant)
            .map_err(|error| LoadError::Variant { model: name.clone(), error })?;
        let networks = Networks::open(files, (device, candle_dtype(dtype)), variant)?;
        let Networks { device, configs, weights, .. } = &networks;
        let tokenizer = |folder: &str, config: &TextConfig| {
            Tokenizer::load(files, folder, config.max_positions, config.vocab_size)
        };
        let tokenizers =
            [tokenizer("tokenizer", &configs.text[0])?, tokenizer("tokenizer_2", &configs.text[1])?];
        Tokenizer::check_pair(files, &tokenizers)?;
        let batch = batch.patches(device, configs.unet.sample_size);
        let memory = device_bytes((device, dtype), batch, configs, weights);
        if device.is_cpu() {
            crate::memory::keep(memory.working);
        }
        let factor = configs.vae.factor();
        let training =
            Training::told_by(index.scheduler, schedule.timestep_spacing, configs.unet.sample_size * factor);
        let description = ModelDescription {
            name,
            fingerprints: fingerprints(configs, weights, &tokenizers)?,
            numeric_class: numeric_class(device, dtype, batch),
            patch_side: configs.unet.sample_size as u32,
            latent_channels: configs.unet.in_channels as u32,
            latent_factor: factor as u32,
            scaling_factor: configs.vae.scaling_factor as f32,
            vae_tile: configs.vae.sample_size as u32,
            vae_reach: configs.vae.reach(),
            vae_norms: configs.vae.norms(),
            device_bytes: memory.placed + memory.working,
            force_zeros_for_empty_prompt: index.force_zeros_for_empty_prompt,
            schedule,
            pag_blocks: pag_names(&configs.unet),
            native_sizes: native_sizes(&presets, configs),
            preset: presets.preset(training),
        };
        index.scheduler.say();
        Ok(Self {
            batch,
            vae_bytes: memory.vae,
            networks,
            tokenizers,
            description,
            text: None,
            predictor: None,
            vae: None,
        })
    }

    fn tensor(&self, array: &Array) -> candle_core::Result<Tensor> {
        Tensor::from_slice(array.data(), array.shape(), &Device::Cpu)?
            .unsqueeze(0)?
            .to_device(&self.networks.device)
    }

    fn vae(&mut self) -> Result<&Vae, BackendError> {
        self.text = None;
        if self.vae.is_none() {
            self.make_room().map_err(|e| device_error("an image", &e))?;
            self.vae = Some(self.networks.vae(Mode::Read)?);
        }
        Ok(self.vae.as_ref().expect("placed above"))
    }

    /// Gives the noise predictor up where the VAE has no room beside it.
    fn make_room(&mut self) -> candle_core::Result<()> {
        kernels::give_back(&self.networks.device)?;
        let free = kernels::free_bytes(&self.networks.device)?;
        if self.predictor.is_some() && free.is_some_and(|free| free < self.vae_bytes) {
            tracing::debug!(?free, needed = self.vae_bytes, "the noise predictor makes room for the VAE");
            self.predictor = None;
            kernels::give_back(&self.networks.device)?;
        }
        Ok(())
    }

    /// Encodes or decodes a tile with given statistics, or finds out its own.
    fn through_vae(
        &mut self,
        input: &Array,
        what: Through,
        mut norms: Norms<'_>,
    ) -> Result<(Array, Vec<f32>), BackendError> {
        let name = match what {
            Through::Encoder => "an encoding",
            Through::Decoder => "an image",
        };
        let input = self.tensor(input).map_err(|e| device_error(name, &e))?;
        let device = self.networks.device.clone();
        let vae = self.vae()?;
        let output = on_pool(&device, || match what {
            Through::Encoder => vae.encode(&input, &mut norms),
            Through::Decoder => vae.decode(&input, &mut norms),
        });
        let output = output.and_then(|o| array(&o.squeeze(0)?)).map_err(|e| device_error(name, &e))?;
        Ok((output, norms.into_found()))
    }

    /// An image tile must be cut at latent pixels.
    fn check_image(&self, image: &Array) -> Result<usize, BackendError> {
        let f = self.networks.configs.vae.factor();
        match image.chw() {
            Some((3, h, w)) if h > 0 && w > 0 && h % f == 0 && w % f == 0 => Ok(h / f),
            _ => Err(shape("the image tile", image, format!("(3, height, width) in multiples of {f}"))),
        }
    }

    fn check_latent(&self, latent: &Array) -> Result<usize, BackendError> {
        let channels = self.networks.configs.vae.latent_channels;
        match latent.chw() {
            Some((c, h, w)) if c == channels && h > 0 && w > 0 => Ok(h),
            _ => Err(shape("the latent tile", latent, format!("({channels}, height, width)"))),
        }
    }

    /// What a patch needs to go through the network, if it is one for this model.
    fn check_patch<'a>(&self, (task, conditioning): Patch<'a>) -> Result<Checked<'a>, BackendError> {
        let channels = self.networks.configs.unet.in_channels;
        if !matches!(task.latent.chw(), Some((c, h, w)) if c == channels && h > 0 && w > 0) {
            return Err(shape("the latent", &task.latent, format!("({channels}, height, width)")));
        }
        let names = task.pag.as_ref().map_or(&[][..], |pag| &pag.blocks);
        let perturbed = resolve_blocks(names, &self.description.pag_blocks)?;
        let row = |states, pooled| Row { states, pooled, is_negative: false };
        let mut rows = Vec::new();
        if task.uses_negative() {
            let missing = BackendError::MissingNegative { guidance_scale: task.guidance_scale };
            let (states, pooled) = conditioning.negative.as_ref().ok_or(missing)?;
            rows.push(Row { is_negative: true, ..row(states, pooled) });
        }
        rows.push(row(&conditioning.prompt, &conditioning.pooled));
        if task.pag.is_some() {
            rows.push(row(&conditioning.prompt, &conditioning.pooled));
        }
        let (width, pooled_width) =
            (self.networks.configs.unet.cross_dim(), self.networks.configs.unet.pooled_dim());
        for Row { states, pooled, .. } in &rows {
            if states.shape().len() != 2 || states.shape()[1] != width {
                return Err(shape("the text states", states, format!("(tokens, {width})")));
            }
            if states.shape() != conditioning.prompt.shape() {
                return Err(shape("the negative text states", states, "the shape of the prompt's".into()));
            }
            if pooled.shape() != [pooled_width] {
                return Err(shape("the pooled text state", pooled, format!("({pooled_width})")));
            }
        }
        Ok(Checked { task, rows, perturbed })
    }

    /// Starts patches that go together.
    fn start_group(&mut self, patches: &[&Checked<'_>]) -> Result<Running, BackendError> {
        let had_text = self.text.take().is_some();
        let had_vae = !self.networks.device.is_cpu() && self.vae.take().is_some();
        if had_text || had_vae {
            kernels::give_back(&self.networks.device).map_err(|e| device_error("noise", &e))?;
        }
        if self.predictor.is_none() {
            self.predictor = Some(Predictor::new(self.networks.unet(Mode::Read)?, &self.networks.device));
        }
        let predictor = self.predictor.as_mut().expect("placed above");
        predictor.start(patches).map_err(|e| device_error("noise", &e))
    }
}

/// Patches on their way.
#[derive(Debug)]
struct Groups {
    /// What is wrong with those that do not fit.
    errors: Vec<Option<BackendError>>,
    groups: Vec<Group>,
}

/// Patches that go through the network together.
#[derive(Debug)]
struct Group {
    /// Which they are.
    chosen: Vec<usize>,
    /// How many the call is of: a GPU's is filled up.
    size: usize,
    running: Result<Running, BackendError>,
}

impl Backend for SdxlModel {
    fn describe(&self) -> &ModelDescription {
        &self.description
    }

    fn encode_text(&mut self, prompt: &str) -> Result<TextEncoding, BackendError> {
        if self.text.is_none() {
            self.text = Some(self.networks.text(Mode::Read)?);
        }
        let Text(encoders) = self.text.as_ref().expect("placed above");
        let encode =
            |i: usize| self.tokenizers[i].encode(prompt).map_err(|reason| BackendError::Prompt { reason });
        let tokens = [encode(0)?, encode(1)?];
        let dropped = tokens[0].dropped.max(tokens[1].dropped);
        let compute = || -> candle_core::Result<TextEncoding> {
            let (first, second) =
                (encoders[0].forward(&tokens[0].ids)?, encoders[1].forward(&tokens[1].ids)?);
            let pooled = second.pooled.expect("the second encoder's configuration has a projection");
            Ok(TextEncoding {
                states: array(&side_by_side(&first.states, &second.states)?)?,
                pooled: array(&pooled)?,
                dropped_tokens: dropped as u32,
            })
        };
        on_pool(&self.networks.device, compute).map_err(|e| device_error("text", &e))
    }

    fn predict_noise(
        &mut self,
        task: &NoiseTask,
        conditioning: &Conditioning,
    ) -> Result<Array, BackendError> {
        self.predict_noises(&[(task, conditioning)]).pop().expect("an answer to every patch")
    }

    fn batch(&self) -> usize {
        self.batch
    }

    fn predict_noises(&mut self, patches: &[Patch<'_>]) -> Vec<Result<Array, BackendError>> {
        let started = self.start_noises(patches);
        self.finish_noises(started, patches)
    }

    fn start_noises(&mut self, patches: &[Patch<'_>]) -> Started {
        let checked: Vec<_> = patches.iter().map(|patch| self.check_patch(*patch)).collect();
        let mut is_chosen = vec![false; patches.len()];
        let mut groups = Vec::new();
        for (i, patch) in checked.iter().enumerate() {
            let Ok(first) = patch else { continue };
            if is_chosen[i] {
                continue;
            }
            let goes =
                |j: &usize| !is_chosen[*j] && checked[*j].as_ref().is_ok_and(|other| other.goes_with(first));
            let chosen: Vec<usize> = (i..patches.len()).filter(goes).take(self.batch).collect();
            chosen.iter().for_each(|j| is_chosen[*j] = true);
            let mut group: Vec<&Checked<'_>> =
                chosen.iter().map(|j| checked[*j].as_ref().expect("chosen among them")).collect();
            if !self.networks.device.is_cpu() {
                // A library may take other kernels for other sizes of a batch: so there is only one size.
                group.resize(self.batch, group[0]);
            }
            let running = self.start_group(&group);
            groups.push(Group { chosen, size: group.len(), running });
        }
        Started::new(Groups { errors: checked.into_iter().map(Result::err).collect(), groups })
    }

    fn is_done(&self, started: &Started) -> bool {
        let groups = &started.get::<Groups>().groups;
        groups.iter().all(|group| group.running.as_ref().map_or(true, Running::is_done))
    }

    fn finish_noises(&mut self, started: Started, patches: &[Patch<'_>]) -> Vec<Result<Array, BackendError>> {
        let Groups { errors, groups } = started.into::<Groups>();
        let mut answers: Vec<_> = errors.into_iter().map(|error| error.map(Err)).collect();
        for Group { chosen, size, running } in groups {
            let tasks: Vec<&NoiseTask> = chosen.iter().map(|j| patches[*j].0).collect();
            let guided = running.and_then(|running| match &mut self.predictor {
                Some(predictor) => {
                    predictor.finish(running, size, &tasks).map_err(|e| device_error("noise", &e))
                }
                None => {
                    let message = "the network was given up before it was asked for its answers".into();
                    Err(BackendError::Device { what: "noise", message })
                }
            });
            match guided {
                Ok(guided) => {
                    chosen.iter().zip(guided).for_each(|(j, guided)| answers[*j] = Some(Ok(guided)));
                }
                Err(error) => {
                    let message = error.to_string();
                    answers[chosen[0]] = Some(Err(error));
                    for j in &chosen[1..] {
                        let message = message.clone();
                        answers[*j] = Some(Err(BackendError::Device { what: "noise", message }));
                    }
                }
            }
        }
        answers.into_iter().map(|answer| answer.expect("every patch was started or refused")).collect()
    }

    fn encode_tile(&mut self, image: &Array, norms: Option<&Array>) -> Result<Array, BackendError> {
        self.check_image(image)?;
        let given = statistics(norms, self.description.vae_norms.encoder)?;
        Ok(self.through_vae(image, Through::Encoder, Norms::given(given))?.0)
    }

    fn decode_tile(&mut self, latent: &Array, norms: Option<&Array>) -> Result<Array, BackendError> {
        self.check_latent(latent)?;
        let given = statistics(norms, self.description.vae_norms.decoder)?;
        Ok(self.through_vae(latent, Through::Decoder, Norms::given(given))?.0)
    }

    fn encoder_norms(
        &mut self,
        image: &Array,
        norms: Option<&Array>,
        part: Rect,
    ) -> Result<Array, BackendError> {
        let rows = self.check_image(image)?;
        let given = statistics(norms, self.description.vae_norms.encoder)?;
        let (_, found) = self.through_vae(image, Through::Encoder, Norms::measuring(given, part, rows))?;
        Ok(pairs(found))
    }

    fn decoder_norms(
        &mut self,
        latent: &Array,
        norms: Option<&Array>,
        part: Rect,
    ) -> Result<Array, BackendError> {
        let rows = self.check_latent(latent)?;
        let given = statistics(norms, self.description.vae_norms.decoder)?;
        let (_, found) = self.through_vae(latent, Through::Decoder, Norms::measuring(given, part, rows))?;
        Ok(pairs(found))
    }
}

/// Runs a network of a CPU on a thread of the pool: from any other, each of its operations would have to wait for
/// one of those to wake up, and to be woken up itself.
pub(super) fn on_pool<T: Send>(device: &Device, network: impl FnOnce() -> T + Send) -> T {
    if device.is_cpu() { rayon::scope(|_| network()) } else { network() }
}

/// One of the VAE's networks.
#[derive(Debug, Clone, Copy)]
enum Through {
    Encoder,
    Decoder,
}

/// The values of statistics, if they are of so many groups.
fn statistics(norms: Option<&Array>, groups: u32) -> Result<Option<&[f32]>, BackendError> {
    match norms {
        Some(norms) if *norms.shape() != [groups as usize, 2] => {
            Err(shape("the statistics", norms, format!("({groups}, 2)")))
        }
        norms => Ok(norms.map(Array::data)),
    }
}

fn pairs(found: Vec<f32>) -> Array {
    Array::new([found.len() / 2, 2], found).expect("a mean and a variance each")
}

fn array(tensor: &Tensor) -> candle_core::Result<Array> {
    let data = kernels::values(tensor)?;
    Ok(Array::new(tensor.dims().to_vec(), data).expect("a tensor has as many values as its shape says"))
}

fn shape(what: &'static str, array: &Array, expected: String) -> BackendError {
    BackendError::Shape { what, actual: array.shape().to_vec(), expected }
}

fn device_error(what: &'static str, error: &candle_core::Error) -> BackendError {
    BackendError::Device { what, message: explained(error) }
}
