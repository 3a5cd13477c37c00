/* OpenVINO runs on processors of every maker, and its plug-in for ONNX Runtime, up to version 1.8, offers itself on those of Intel alone
 * (microsoft/onnxruntime#31981). So that the tests run the real one everywhere, this plug-in passes everything on to that of
 * OPENVINO_PLUGIN, and says "Intel" while it looks at processors. */
#include <dlfcn.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

enum { CPU = 0, INTEL = 0x8086, MOST = 16 };

/* The first fields of ONNX Runtime's OrtHardwareDevice and OrtEpFactory. */
struct device {
    int type;
    uint32_t vendor;
};
struct factory;
typedef void *offer(struct factory *, struct device *const *, size_t, void **, size_t, size_t *);
struct factory {
    uint32_t version;
    void *name, *vendor;
    offer *offer;
};

static void *library;
static offer *theirs;

static void *offer_on_any(struct factory *factory, struct device *const *devices, size_t count, void **offers, size_t most, size_t *made) {
    uint32_t vendors[MOST];
    for (size_t i = 0; i < count && i < MOST; i++) {
        vendors[i] = devices[i]->vendor;
        if (devices[i]->type == CPU)
            devices[i]->vendor = INTEL;
    }
    void *status = theirs(factory, devices, count, offers, most, made);
    for (size_t i = 0; i < count && i < MOST; i++)
        devices[i]->vendor = vendors[i];
    return status;
}

void *CreateEpFactories(const char *name, const void *api, const void *log, struct factory **factories, size_t most, size_t *count) {
    const char *path = getenv("OPENVINO_PLUGIN");
    library = path ? dlopen(path, RTLD_NOW | RTLD_LOCAL) : NULL;
    if (!library) {
        fprintf(stderr, "OPENVINO_PLUGIN names no library: %s\n", path ? dlerror() : "it is not set");
        exit(1);
    }
    void *(*create)(const char *, const void *, const void *, struct factory **, size_t, size_t *) = dlsym(library, "CreateEpFactories");
    void *status = create(name, api, log, factories, most, count);
    for (size_t i = 0; !status && i < *count; i++) {
        theirs = factories[i]->offer;
        factories[i]->offer = offer_on_any;
    }
    return status;
}

void *ReleaseEpFactory(struct factory *factory) {
    void *(*release)(struct factory *) = dlsym(library, "ReleaseEpFactory");
    return release(factory);
}
