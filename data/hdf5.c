/* The little that every user of HDF5 here needs; see the header. */
#include "data/hdf5.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void lk_h5_begin(void)
{
    H5Eset_auto2(H5E_DEFAULT, NULL, NULL);
    H5Eclear2(H5E_DEFAULT);
}

/* Called from the innermost error outwards; the first that says anything is the cause. */
static herr_t take_reason(unsigned n, const H5E_error2_t *error, void *context)
{
    char *reason = context;
    (void)n;
    if (!reason[0] && error->desc && error->desc[0]) snprintf(reason, 300, "%s", error->desc);
    return 0;
}

lk_status lk_h5_fail(lk_error *err, lk_status code, const char *format, ...)
{
    char text[600], reason[300] = "";
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    H5Ewalk2(H5E_DEFAULT, H5E_WALK_UPWARD, take_reason, reason);
    H5Eclear2(H5E_DEFAULT);
    return lk_fail(err, code, "%s: %s", text, reason[0] ? reason : "HDF5 gives no reason");
}

static lk_status write_attribute(hid_t object, const char *name, hid_t file_type, hid_t memory_type, const void *value, const char *where,
                                 lk_error *err)
{
    lk_status status = LK_OK;
    hid_t space = H5Screate(H5S_SCALAR), attribute = -1;
    if (H5Aexists(object, name) > 0) H5Adelete(object, name);
    attribute = H5Acreate2(object, name, file_type, space, H5P_DEFAULT, H5P_DEFAULT);
    if (attribute < 0 || H5Awrite(attribute, memory_type, value) < 0)
        status = lk_h5_fail(err, LK_ERR_IO, "%s: cannot write the attribute %s", where, name);
    if (attribute >= 0 && H5Aclose(attribute) < 0 && !status)
        status = lk_h5_fail(err, LK_ERR_IO, "%s: cannot write the attribute %s", where, name);
    if (space >= 0) H5Sclose(space);
    return status;
}

lk_status lk_h5_write_text(hid_t object, const char *name, const char *value, const char *where, lk_error *err)
{
    hid_t type = H5Tcopy(H5T_C_S1);
    if (type < 0 || H5Tset_size(type, strlen(value) + 1) < 0 || H5Tset_cset(type, H5T_CSET_UTF8) < 0) {
        if (type >= 0) H5Tclose(type);
        return lk_h5_fail(err, LK_ERR_INTERNAL, "%s: the attribute %s", where, name);
    }
    lk_status status = write_attribute(object, name, type, type, value, where, err);
    H5Tclose(type);
    return status;
}

lk_status lk_h5_write_int(hid_t object, const char *name, int64_t value, const char *where, lk_error *err)
{
    return write_attribute(object, name, H5T_STD_I64LE, H5T_NATIVE_INT64, &value, where, err);
}

static lk_status read_open(hid_t attribute, hid_t type, const char *name, char **value, const char *where, lk_error *err)
{
    enum { MAX_TEXT = 64 << 20 };
    int64_t number = 0;
    size_t size = H5Tget_size(type);
    hid_t space = H5Aget_space(attribute);
    hssize_t count = space >= 0 ? H5Sget_simple_extent_npoints(space) : -1;
    if (space >= 0) H5Sclose(space);
    bool is_text = H5Tget_class(type) == H5T_STRING && H5Tis_variable_str(type) == 0, is_int = H5Tget_class(type) == H5T_INTEGER;
    if (count != 1 || (!is_text && !is_int) || size == 0 || size > MAX_TEXT)
        return lk_fail(err, LK_ERR_FORMAT, "%s: the attribute %s is neither text nor a whole number", where, name);
    *value = calloc(1, size + 32);
    if (!*value) return lk_fail(err, LK_ERR_MEMORY, "%s: no memory", where);
    bool failed = is_text ? H5Aread(attribute, type, *value) < 0 : H5Aread(attribute, H5T_NATIVE_INT64, &number) < 0;
    if (failed) {
        free(*value);
        *value = NULL;
        return lk_h5_fail(err, LK_ERR_FORMAT, "%s: the attribute %s is damaged", where, name);
    }
    if (is_int) snprintf(*value, size + 32, "%" PRId64, number);
    return LK_OK;
}

lk_status lk_h5_read_text(hid_t object, const char *name, char **value, const char *where, lk_error *err)
{
    *value = NULL;
    htri_t exists = H5Aexists(object, name);
    if (exists < 0) return lk_h5_fail(err, LK_ERR_FORMAT, "%s: the attributes are damaged", where);
    if (!exists) return lk_fail(err, LK_ERR_NOT_FOUND, "%s: there is no attribute %s", where, name);
    hid_t attribute = H5Aopen(object, name, H5P_DEFAULT), type = attribute >= 0 ? H5Aget_type(attribute) : -1;
    lk_status status = type >= 0 ? read_open(attribute, type, name, value, where, err)
                                 : lk_h5_fail(err, LK_ERR_FORMAT, "%s: the attribute %s is damaged", where, name);
    if (type >= 0) H5Tclose(type);
    if (attribute >= 0) H5Aclose(attribute);
    return status;
}

lk_status lk_h5_read_int(hid_t object, const char *name, int64_t *value, const char *where, lk_error *err)
{
    char *text, *end;
    LK_TRY(lk_h5_read_text(object, name, &text, where, err));
    *value = strtoll(text, &end, 10);
    lk_status status = *text && !*end ? LK_OK : lk_fail(err, LK_ERR_FORMAT, "%s: the attribute %s must be a whole number", where, name);
    free(text);
    return status;
}
